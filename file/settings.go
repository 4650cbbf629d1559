package file

import (
	"math"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// settingsOf describes a stream's settings.
func settingsOf(s *stream.State) gearsfs.Settings {
	return gearsfs.Settings{
		Age: time.Duration(s.Age), Full: s.Full, Tries: s.Tries, Memory: s.Memory,
		Type: s.Type, IDWindow: time.Duration(s.IDWindow), AppendOnly: s.AppendOnly,
	}
}

// checkSettings checks what setSettings is to set for a stream in that state.
func checkSettings(key gearsfs.Key, state *stream.State, set *wire.Settings) error {
	switch {
	case set.GetFull() > uint32(gearsfs.FullDropOldest):
		return gearsfs.ErrInvalid.Because("%d is not what a full stream can do", set.GetFull())
	case set.GetAge() > math.MaxInt64:
		return gearsfs.ErrInvalid.Because("the age is too long")
	case set.GetMemory() && key == gearsfs.DataKey:
		return gearsfs.ErrUnsupported.Because("the data stream can't be in memory")
	case set != nil && set.Memory != nil && *set.Memory != state.Memory && !state.Drained():
		return gearsfs.ErrInvalid.Because("the stream has records: where they are kept can't be changed")
	}
	return nil
}

// setSettings changes the settings that say what becomes of a stream's records.
func (m *Machine) setSettings(s *openStream, set *wire.Settings) {
	state := s.queue.State()
	limits := state.Limits
	if set.Records != nil {
		limits.Records = *set.Records
	}
	if set.Bytes != nil {
		limits.Bytes = *set.Bytes
	}
	if set.Full != nil {
		state.Full = gearsfs.Full(*set.Full)
	}
	if set.Tries != nil {
		state.Tries = *set.Tries
	}
	if set.Memory != nil {
		state.Memory = *set.Memory
	}
	if set.Age != nil && *set.Age != state.Age {
		state.Age = *set.Age
		m.setAgeTimer(s, 0) // watchAge looks when the first is too old
	}
	s.queue.SetLimits(limits)
	m.touch(s.node.ino, s.key).Room = true
}

// isFull reports whether a put of n records of together that many bytes finds no
// room in a stream that is in a state. gearsfs.ErrTooBig where it never would
// though the oldest go for it.
func isFull(state *stream.State, n, bytes uint64) (bool, error) {
	l := state.Limits
	switch {
	case state.Full != gearsfs.FullDropOldest:
		return !state.Fits(n, bytes), nil
	case l.Records != 0 && n > l.Records:
		return false, gearsfs.ErrTooBig.Because("the stream keeps %d records, the put has %d", l.Records, n)
	case l.Bytes != 0 && bytes > l.Bytes:
		return false, gearsfs.ErrTooBig.Because("the stream keeps %d bytes, the put has %d", l.Bytes, bytes)
	}
	return false, nil
}

// makeRoom removes the oldest records where a stream is set to that and a put of
// these finds no room otherwise.
func (m *Machine) makeRoom(c *context, s *openStream, records []*wire.NewRecord) error {
	state := s.queue.State()
	if state.Full != gearsfs.FullDropOldest || len(records) == 0 {
		return nil
	}
	was := state.Discarded
	if err := s.queue.DropOldest(uint64(len(records)), bytesOf(records)); err != nil {
		return err
	}
	if state.Discarded != was {
		m.counts.records.Discarded += state.Discarded - was
		m.consumed(c, s)
	}
	return nil
}
