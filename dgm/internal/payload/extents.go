package payload

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/wire"
)

func extentToWire(e gearsfs.Extent) *wire.Extent { return file.ExtentsToWire([]gearsfs.Extent{e})[0] }

// extentFromWire returns an extent that shares w's bytes: gearsfs.ErrInvalid
// where it is none.
func extentFromWire(w *wire.Extent) (gearsfs.Extent, error) {
	e := file.ExtentOf(w)
	return e, e.Check()
}

func extentsFromWire(ws []*wire.Extent) ([]gearsfs.Extent, error) {
	out := make([]gearsfs.Extent, len(ws))
	for i, w := range ws {
		var err error
		if out[i], err = extentFromWire(w); err != nil {
			return nil, err
		}
	}
	return out, nil
}
