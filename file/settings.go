package file

import (
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/stream"
)

// settingsOf describes a stream's settings.
func settingsOf(s *stream.State) gearsfs.Settings {
	return gearsfs.Settings{
		Age: time.Duration(s.Age), Full: s.Full, Tries: s.Tries, Memory: s.Memory,
		Type: s.Type, IDWindow: time.Duration(s.IDWindow), AppendOnly: s.AppendOnly,
	}
}
