package file

import (
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// Bounds of a copy. It is one step, so that it is one cut and the file is never
// there in part; everything else waits for it. What is larger is refused: its
// bytes can be copied as any file's, and its streams be moved in pieces.
const (
	copyRecordsMax = 100_000
	copyBytesMax   = 64 << 20
	copyStreamsMax = 10_000
)

// applyCopyFile makes a file with copies of all streams of another. Records keep
// their seqs, places and times, and can all be taken, for nobody holds a lease on
// a copy; settings are copied, too, and ids are not. A file that is there keeps
// its inode, owner, mode and attributes, and loses its streams.
func (m *Machine) applyCopyFile(c *context, op *wire.CopyFile) *wire.Answer {
	from, err := m.queueFile(c, op.From, mayRead)
	if err == nil && from == nil {
		err = gearsfs.ErrNotFound
	}
	if err != nil {
		return m.refuse(err)
	}
	streams, err := m.copied(from)
	if err != nil {
		return m.refuse(err)
	}
	to, err := m.queueFile(c, op.To, mayWrite)
	var old []*openStream
	switch {
	case err != nil:
	case to == nil:
		err = m.mayMakeFile(c, op.To)
	case to == from:
		err = gearsfs.ErrInvalid.Because("the file can't be copied to itself")
	default:
		old, err = m.replaceable(to)
	}
	for i := 0; i < len(old) && err == nil; i++ {
		err = m.checkRemoval(old[i], 0)
	}
	if err == nil {
		err = m.roomToCopy(op.To, to, streams, old)
	}
	if err == nil && to == nil {
		to, err = m.makeFile(c, op.To, from.row.Mode&0o777)
	}
	if err == nil {
		err = m.copyStreams(c, streams, old, to)
	}
	if err != nil {
		return m.refuse(err)
	}
	to.row.Taken = from.row.Taken
	return m.answerAttr(to)
}

// copied returns the streams of a file that is to be copied, where that fits
// into one entry.
func (m *Machine) copied(n *node) ([]*openStream, error) {
	if n.row.Streams > copyStreamsMax {
		return nil, gearsfs.ErrTooBig.Because("the file has %d streams; a copy has at most %d", n.row.Streams, copyStreamsMax)
	}
	streams, err := m.allStreams(n)
	if err != nil {
		return nil, err
	}
	var records, bytes uint64
	for _, s := range streams {
		state := s.queue.State()
		if state.Memory {
			return nil, gearsfs.ErrUnsupported.Because("stream %q is in memory", s.key)
		}
		records += state.Ready + state.Leased + state.Delayed
		bytes += state.Bytes
		if s.extents > 0 && records <= copyRecordsMax { // what is in the block store is not copied
			stored, err := m.storedBytes(s)
			if err != nil {
				return nil, err
			}
			bytes -= stored
		}
	}
	if records > copyRecordsMax || bytes > copyBytesMax {
		return nil, gearsfs.ErrTooBig.Because("the file has %d records of %d bytes; a copy has at most %d of %d: copy its bytes, or move its records in pieces",
			records, bytes, copyRecordsMax, copyBytesMax)
	}
	return streams, nil
}

// storedBytes is how many bytes of the records that live are in the block store.
func (m *Machine) storedBytes(s *openStream) (n uint64, err error) {
	state := s.queue.State()
	err = m.rowsOf(s).Scan(state.Head, state.End(), func(at gearsfs.Place, rec *stream.Record) bool {
		if s.queue.Lives(at) {
			for i := range rec.Extents {
				n += rec.Extents[i].Length - uint64(len(rec.Extents[i].Data))
			}
		}
		return true
	})
	return n, err
}

// replaceable returns the streams of a file that is to be replaced.
func (m *Machine) replaceable(n *node) ([]*openStream, error) {
	if n.row.Streams > copyStreamsMax {
		return nil, gearsfs.ErrTooBig.Because("the file that is to be replaced has %d streams, more than %d: remove it first", n.row.Streams, copyStreamsMax)
	}
	streams, err := m.allStreams(n)
	for _, s := range streams {
		switch state := s.queue.State(); {
		case state.AppendOnly:
			return nil, gearsfs.ErrPermission.Because("stream %q is append-only", s.key)
		case state.Memory:
			return nil, gearsfs.ErrUnsupported.Because("stream %q is in memory", s.key)
		}
	}
	return streams, err
}

// allStreams returns all streams of a file, in the order of their keys.
func (m *Machine) allStreams(n *node) ([]*openStream, error) {
	var keys []gearsfs.Key
	if n.streams != nil { // those that are new have no rows yet
		keys = n.streams.Keys()
	}
	lo, hi := persist.FileRange(persist.TableStream, n.ino)
	err := scan(m.store, lo, hi, func(k, _ []byte) error {
		_, key, err := persist.ParseStreamKey(k)
		keys = append(keys, key)
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(keys)
	var streams []*openStream
	for _, key := range slices.Compact(keys) {
		s, err := m.stream(n, key)
		if err != nil {
			return nil, err
		}
		if s != nil {
			streams = append(streams, s)
		}
	}
	return streams, nil
}

// copyStreams drops the old streams of a file and puts copies in their place.
// The version of each is behind that of the one that it replaces.
func (m *Machine) copyStreams(c *context, streams, old []*openStream, to *node) error {
	versions := make(map[gearsfs.Key]uint64)
	for _, s := range old {
		versions[s.key] = s.queue.State().Version + 1
		t := m.touch(to.ino, s.key)
		t.Gone, t.Room = true, true
		if err := m.dropStream(s); err != nil {
			return err
		}
	}
	for _, s := range streams {
		if err := m.copyStream(c, s, to, versions[s.key]); err != nil {
			return err
		}
		delete(versions, s.key)
	}
	if version, ok := versions[gearsfs.DataKey]; ok { // there are no bytes any more
		s := m.makeStream(to, gearsfs.DataKey)
		s.queue.State().Version = version
		m.dataChanged(c, s)
	}
	return nil
}

// copyStream makes a copy of a stream, of that version or a later one.
func (m *Machine) copyStream(c *context, from *openStream, to *node, version uint64) error {
	copied := from.queue.State().Copied()
	copied.Version = max(copied.Version, version)
	s := m.makeStream(to, from.key)
	if err := m.copyRows(from, s); err != nil {
		return err
	}
	queue, err := stream.NewQueue(copied, m.rowsOf(s), m.windows)
	if err != nil {
		return err
	}
	s.queue = queue
	touched := m.touch(to.ino, s.key)
	touched.Ready, touched.Appended, touched.Sealed = copied.Ready > 0, copied.Ready > 0, copied.Sealed
	m.dataChanged(c, s)
	return nil
}

// copyRows copies the rows of the records that live, as they are. What they refer
// to in the block store they share.
func (m *Machine) copyRows(from, to *openStream) error {
	lo, hi := persist.RecordRange(from.node.ino, from.key, from.queue.State().Head, from.queue.State().End())
	return scan(m.store, lo, hi, func(k, value []byte) error {
		at, err := persist.ParsePlace(k)
		if err != nil || !from.queue.Lives(at) {
			return err
		}
		if from.extents > 0 {
			if err := m.shareRow(to, value); err != nil {
				return err
			}
		}
		m.scratch.key = persist.AppendRecordKey(m.scratch.key[:0], to.node.ino, to.key, at)
		m.store.Set(m.scratch.key, value)
		return nil
	})
}

// shareRow accounts for a copy of a row in another stream.
func (m *Machine) shareRow(to *openStream, value []byte) error {
	var row wire.RecordRow
	if err := row.UnmarshalVTUnsafe(value); err != nil {
		return damaged("record", err)
	}
	if len(row.Extents) == 0 {
		return nil
	}
	to.extents++
	return m.shareExtents(ExtentsOf(row.Extents))
}
