package file

import (
	"math"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// A file's bytes are the records of its data stream. What write(2) adds
// outside of records that exist becomes block rows:
//
//	pos   0         16K        32K        48K
//	      |  put  |..|  block  |   block  |.. gap ..|
//	              ^ a block row begins at its aligned start, behind the record
//	                in front of it, the cursor or the head, and ends before the next
//	                record or aligned end
//
// Invariants:
//
//  1. Records that live don't overlap; what none covers between head and tail
//     reads as zeros.
//  2. A block row lies within one aligned block of blockBytes.
//  3. Only block rows at or behind the cursor grow: what was handed out keeps
//     its length.
const blockBytes = 16 << 10

func blockStart(pos gearsfs.Pos) gearsfs.Pos { return pos - pos%blockBytes }

// piece is a record that lives and overlaps a range of bytes, or the last one
// in front of it.
type piece struct {
	at   gearsfs.Place
	size int
	rec  stream.Record // Data only where the range covers it in part
}

func (p *piece) end() gearsfs.Pos { return p.at.Pos + gearsfs.Pos(p.size) }

// content returns the file whose bytes a command changes and its data stream,
// nil where there is none yet.
func (m *Machine) content(c *context, ino uint64) (*node, *openStream, error) {
	n, err := m.node(gearsfs.Ino(ino))
	switch {
	case err != nil:
		return nil, nil, err
	case n == nil:
		return nil, nil, gearsfs.ErrStale
	case isDir(n.row.Mode):
		return nil, nil, gearsfs.ErrIsDir
	case !isFile(n.row.Mode):
		return nil, nil, gearsfs.ErrInvalid.Because("not a regular file")
	}
	if err := m.access(c, n, mayWrite); err != nil {
		return nil, nil, err
	}
	s, err := m.stream(n, gearsfs.DataKey)
	if err == nil && s != nil && s.queue.State().Sealed {
		err = gearsfs.ErrSealed
	}
	if err == nil && s != nil && s.queue.State().AppendOnly {
		err = errAppendOnly
	}
	return n, s, err
}

// changedBytes notes that a command changed n's bytes; was is the stream's state
// before. However many rows that changed, the version rises by one: a mount
// sees from its answer that nobody else changed the bytes in between.
func (m *Machine) changedBytes(c *context, n *node, s *openStream, was stream.State, room bool) {
	s.queue.State().Version = was.Version + 1
	m.dirtyStream(s)
	m.wrote(c, n)
	m.change(c, n.ino, true)
	t := m.touch(n.ino, gearsfs.DataKey)
	t.Appended = t.Appended || s.queue.State().NextSeq != was.NextSeq
	t.Ready = s.queue.State().Ready > 0
	t.Room = t.Room || room
}

func (m *Machine) applyWrite(c *context, op *wire.Write) *wire.Answer {
	n, s, err := m.content(c, op.Ino)
	if err == nil && len(op.Data) > gearsfs.RecordBytesMax {
		err = gearsfs.ErrTooBig
	}
	if err == nil && op.Pos > gearsfs.FileBytesMax-uint64(len(op.Data)) {
		err = gearsfs.ErrTooBig
	}
	if err == nil && s != nil && s.queue.State().Type != "" { // of bytes written in place there is no type
		err = gearsfs.ErrType.Because("the stream is of type %q: records are put into it", s.queue.State().Type)
	}
	if err == nil && len(op.Data) > 0 {
		err = m.write(c, n, s, gearsfs.Pos(op.Pos), op.Data)
	}
	if err != nil {
		return m.refuse(err)
	}
	return m.answerAttr(n)
}

// write puts data at pos, all of it or, with an error, none.
func (m *Machine) write(c *context, n *node, s *openStream, pos gearsfs.Pos, data []byte) error {
	var pieces []piece
	end := pos + gearsfs.Pos(len(data))
	if s != nil {
		if pos < s.queue.State().Head.Pos {
			return gearsfs.ErrIO.Because("these bytes were taken")
		}
		var err error
		if pieces, err = m.pieces(s, pos, end); err != nil {
			return err
		}
		if gapBefore(pieces, pos, min(end, s.queue.State().Cursor.Pos)) {
			return gearsfs.ErrIO.Because("these bytes were taken")
		}
	}
	if err := m.roomToWrite(n, stateOrNew(s), pieces, pos, end); err != nil {
		return err
	}
	if s == nil {
		s = m.makeStream(n, gearsfs.DataKey)
	}
	was := *s.queue.State()
	w := writing{queue: s.queue, now: c.now, buf: m.scratch.block}
	w.write(pieces, pos, data)
	m.scratch.block = w.buf
	m.changedBytes(c, n, s, was, false)
	return nil
}

// gapBefore says whether the pieces leave a gap in [pos, end).
func gapBefore(pieces []piece, pos, end gearsfs.Pos) bool {
	for i := range pieces {
		if pos >= end || pieces[i].at.Pos > pos {
			break
		}
		pos = max(pos, pieces[i].end())
	}
	return pos < end
}

// pieces returns the records that live and overlap [pos, end), in order, and
// in front of them the last one before pos, where its block row could grow.
// They are valid until the next call.
func (m *Machine) pieces(s *openStream, pos, end gearsfs.Pos) ([]piece, error) {
	m.scratch.pieces = m.scratch.pieces[:0]
	if blockStart(pos) >= s.queue.State().Tail {
		return nil, nil // nothing is there: the way of files that are written from front to back
	}
	rows := m.rowsOf(s)
	it, err := m.store.Scan(rows.recordRange(gearsfs.Place{}, gearsfs.Place{Pos: end}))
	if err != nil {
		return nil, err
	}
	for ok := seekRecord(it, &m.scratch.key, s.node.ino, pos); ok; ok = it.Next() {
		at, rec, err := parseRecord(it)
		if err != nil {
			it.Close() // the first error is the one to tell
			return nil, err
		}
		if s.queue.Lives(at) {
			m.addPiece(at, rec, pos, end)
		}
	}
	return m.scratch.pieces, it.Close()
}

// addPiece adds a record that lives to the pieces of [pos, end), in place of
// one that is not the last in front of pos any more.
func (m *Machine) addPiece(at gearsfs.Place, rec stream.Record, pos, end gearsfs.Pos) {
	p := piece{at: at, size: len(rec.Data), rec: rec}
	p.rec.Data = nil
	pieces, data := m.scratch.pieces, m.scratch.data
	if len(pieces) == 0 {
		data = data[:0]
	}
	if n := len(pieces); n > 0 && pieces[n-1].end() <= pos && at.Pos <= pos {
		pieces, data = pieces[:n-1], data[:0]
	}
	if at.Pos < pos && p.end() >= blockStart(pos) || p.end() > end {
		data = append(data, rec.Data...)
		p.rec.Data = data[len(data)-len(rec.Data):]
	}
	m.scratch.pieces, m.scratch.data = append(pieces, p), data
}

// seekRecord positions it, which ranges over a file's data stream, on a row
// from which on it meets all records that reach over pos. It looks forward
// first, since going backwards copies a whole value.
func seekRecord(it Iterator, key *[]byte, ino gearsfs.Ino, pos gearsfs.Pos) bool {
	*key = persist.AppendRecordKey((*key)[:0], ino, gearsfs.DataKey, gearsfs.Place{Pos: blockStart(pos)})
	if it.SeekGE(*key) {
		if at, err := persist.ParsePlace(it.Key()); err != nil || at.Pos == blockStart(pos) {
			return true // with an error the caller finds it, too
		}
	}
	*key = persist.AppendRecordKey((*key)[:0], ino, gearsfs.DataKey, gearsfs.Place{Pos: pos, Seq: math.MaxUint64})
	return it.SeekLT(*key) || it.First()
}

func parseRecord(it Iterator) (at gearsfs.Place, rec stream.Record, err error) {
	if at, err = persist.ParsePlace(it.Key()); err != nil {
		return at, rec, err
	}
	var row wire.RecordRow
	if err := row.UnmarshalVTUnsafe(it.Value()); err != nil {
		return at, rec, damaged("record", err)
	}
	rec = recordOf(&row)
	if rec.Type != "" {
		rec.Type = string([]byte(rec.Type)) // it outlives the iterator's step
	}
	return at, rec, nil
}

// writing is one write: it walks over the pieces and the gaps between them and
// holds one changed row back, since a gap behind it may let it grow.
type writing struct {
	queue *stream.Queue
	now   uint64
	buf   []byte // the bytes of the row in hand

	held    bool
	at      gearsfs.Place // of the row in hand, where it exists
	oldSize int
	rec     stream.Record
}

func (w *writing) write(pieces []piece, pos gearsfs.Pos, data []byte) {
	end := pos + gearsfs.Pos(len(data))
	from := gearsfs.Pos(0) // the end of the record in front
	for i := range pieces {
		p := &pieces[i]
		if p.at.Pos > pos {
			n := min(p.at.Pos, end) - pos
			w.fill(from, pos, data[:n])
			pos, data = pos+n, data[n:]
		}
		from = p.end()
		w.take(p, pos, end, &data)
		pos = end - gearsfs.Pos(len(data))
	}
	if len(data) > 0 {
		w.fill(from, pos, data)
	}
	w.store()
}

// take overwrites what data has for a piece. One that may grow, or was changed
// in part, stays in hand.
func (w *writing) take(p *piece, pos, end gearsfs.Pos, data *[]byte) {
	w.store()
	n := int(max(min(p.end(), end), pos) - pos)
	mine := (*data)[:n]
	*data = (*data)[n:]
	grows := p.rec.Block && !p.at.Less(w.queue.State().Cursor) && p.end()%blockBytes != 0
	switch {
	case n == p.size && !grows:
		if n > 0 {
			rec := p.rec
			rec.Data = mine
			w.queue.Replace(p.at, p.size, &rec)
		}
		return
	case n == 0 && (!grows || blockStart(p.at.Pos) != blockStart(pos)):
		return
	case n == p.size:
		w.buf = append(w.buf[:0], mine...)
	default:
		w.buf = append(w.buf[:0], p.rec.Data...)
		if n > 0 {
			copy(w.buf[pos-p.at.Pos:], mine)
		}
	}
	w.held, w.at, w.oldSize, w.rec = true, p.at, p.size, p.rec
	w.rec.Data = w.buf
}

// fill writes data into the gap at pos, which begins at from or, where more was
// handed out, at the cursor, or at the head: that passes a gap at the tail when
// the last record is taken.
func (w *writing) fill(from, pos gearsfs.Pos, data []byte) {
	from = max(from, w.queue.State().Cursor.Pos, w.queue.State().Head.Pos)
	for len(data) > 0 {
		start := blockStart(pos)
		n := min(int(start+blockBytes-pos), len(data))
		if !w.grows(start) {
			w.store()
			at := max(start, from)
			if at == pos { // the common case copies nothing
				w.queue.Insert(at, &stream.Record{Data: data[:n], Time: w.now, Block: true})
				pos, data = pos+gearsfs.Pos(n), data[n:]
				continue
			}
			w.held, w.at, w.oldSize = true, gearsfs.Place{Pos: at}, -1
			w.rec = stream.Record{Data: w.buf[:0], Time: w.now, Block: true}
		}
		w.rec.Data = appendZeros(w.rec.Data, int(pos-w.at.Pos)-len(w.rec.Data))
		w.rec.Data = append(w.rec.Data, data[:n]...)
		w.buf = w.rec.Data
		pos, data = pos+gearsfs.Pos(n), data[n:]
	}
}

// grows says whether the row in hand is of the block that begins at start and
// may grow.
func (w *writing) grows(start gearsfs.Pos) bool {
	return w.held && w.rec.Block && blockStart(w.at.Pos) == start &&
		(w.oldSize < 0 || !w.at.Less(w.queue.State().Cursor))
}

// store puts down the row in hand.
func (w *writing) store() {
	switch {
	case !w.held:
	case w.oldSize < 0:
		w.queue.Insert(w.at.Pos, &w.rec)
	default:
		w.queue.Replace(w.at, w.oldSize, &w.rec)
	}
	w.held = false
}

func appendZeros(b []byte, n int) []byte {
	if n <= 0 {
		return b
	}
	return append(b, make([]byte, n)...)
}
