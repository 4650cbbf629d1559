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
//  2. A block row lies within one aligned block of blockBytes, or where it has
//     extents of extentBlockBytes.
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
	next spliced       // what becomes of it, where extents are concerned
}

func (p *piece) end() gearsfs.Pos { return p.at.Pos + gearsfs.Pos(p.size) }

// content returns the file whose bytes a command changes and its data stream,
// nil where there is none yet.
func (m *Machine) content(c *context, ino uint64) (*node, *openStream, error) {
	n, err := m.reach(gearsfs.Ino(ino))
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
	n, err := m.writeAt(c, op)
	if err != nil {
		return m.refuse(err)
	}
	return m.answerAttr(n)
}

// applySave writes and sets attributes. What a write changes of an inode is
// nothing that decides whether its attributes may be set.
func (m *Machine) applySave(c *context, op *wire.Save) *wire.Answer {
	set := op.GetSet()
	n, err := m.reach(gearsfs.Ino(set.GetIno()))
	switch {
	case err != nil:
	case n == nil:
		err = gearsfs.ErrStale
	case set.Size != nil || op.GetWrite().GetIno() != set.Ino:
		err = gearsfs.ErrInvalid.Because("bytes and attributes, not the size, of one file are saved together")
	default:
		err = m.checkSetAttr(c, n, set)
	}
	if err == nil {
		n, err = m.writeAt(c, op.Write)
	}
	if err != nil {
		return m.refuse(err)
	}
	m.setAttr(c, n, set)
	m.change(c, n.ino, false)
	return m.answerAttr(n)
}

// writeAt does all that a Write says or, with an error, nothing.
func (m *Machine) writeAt(c *context, op *wire.Write) (*node, error) {
	n, s, err := m.content(c, op.Ino)
	if err == nil {
		err = checkPayload(op.Data, op.Extents)
	}
	pay := payloadOf(op.Data, op.Extents)
	if err == nil && op.Pos > gearsfs.FileBytesMax-pay.length {
		err = gearsfs.ErrTooBig
	}
	if err == nil && s != nil && s.queue.State().Type != "" { // of bytes written in place there is no type
		err = gearsfs.ErrType.Because("the stream is of type %q: records are put into it", s.queue.State().Type)
	}
	if err == nil && pay.length > 0 {
		err = m.write(c, n, s, gearsfs.Pos(op.Pos), &pay)
	}
	return n, err
}

// write puts a payload at pos, all of it or, with an error, none.
func (m *Machine) write(c *context, n *node, s *openStream, pos gearsfs.Pos, pay *payload) error {
	var pieces []piece
	end := pos + gearsfs.Pos(pay.length)
	if s != nil {
		if pos < s.queue.State().Head.Pos {
			return errTaken
		}
		var err error
		if pieces, err = m.pieces(s, pos, end); err != nil {
			return err
		}
		if gapBefore(pieces, pos, min(end, s.queue.State().Cursor.Pos)) {
			return errTaken
		}
		if err := m.splice(s, pieces, pos, pay); err != nil {
			return err
		}
	}
	if err := m.roomToWrite(n, stateOrNew(s), pieces, pos, end); err != nil {
		return err
	}
	if s == nil {
		s = m.makeStream(n, gearsfs.DataKey)
	}
	was := *s.queue.State()
	w := writing{m: m, queue: s.queue, now: c.now, buf: m.scratch.block, pay: pay, start: pos}
	w.write(pieces, pos, end)
	m.scratch.block = w.buf
	m.changedBytes(c, n, s, was, false)
	return w.err
}

var errTaken = gearsfs.ErrIO.Because("these bytes were taken")

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
	if ok, err := m.soleRow(s, pos, end); ok || err != nil {
		return m.scratch.pieces, err
	}
	rows := m.rowsOf(s)
	it, err := m.store.Scan(rows.recordRange(gearsfs.Place{}, gearsfs.Place{Pos: end}))
	if err != nil {
		return nil, err
	}
	for ok := seekRecord(it, &m.scratch.key, s.node.ino, pos, s.extents > 0); ok; ok = it.Next() {
		at, rec, err := parseRecord(it)
		if err != nil {
			it.Close() // the first error is the one to tell
			return nil, err
		}
		if s.queue.Lives(at) && m.addPiece(at, rec, pos, end) {
			break // looking on would pass older versions of the row
		}
	}
	m.noteSole(s, pos, end)
	return m.scratch.pieces, it.Close()
}

// soleRow adds the piece of a row that is known to begin an aligned block, if it
// covers [pos, end): records that live don't overlap, so there is no other.
func (m *Machine) soleRow(s *openStream, pos, end gearsfs.Pos) (bool, error) {
	known := m.scratch.soles.of(s, pos)
	if known.ino != s.node.ino || known.at.Pos != s.rowStart(pos) || pos >= end || !s.queue.Lives(known.at) {
		return false, nil
	}
	value, ok, err := m.store.Get(m.rowsOf(s).recordKey(known.at), m.scratch.value[:0])
	if err != nil || !ok {
		return false, err
	}
	m.scratch.value = value
	rec, err := parseRecordRow(value)
	if err != nil || known.at.Pos+gearsfs.Pos(rec.Len()) < end {
		return false, err
	}
	m.addPiece(known.at, rec, pos, end)
	return true, nil
}

// noteSole remembers the one piece that was found in [pos, end).
func (m *Machine) noteSole(s *openStream, pos, end gearsfs.Pos) {
	if len(m.scratch.pieces) != 1 || pos >= end {
		return
	}
	if p := &m.scratch.pieces[0]; p.at.Pos == s.rowStart(pos) && p.end() >= end {
		*m.scratch.soles.of(s, pos) = sole{s.node.ino, p.at}
	}
}

// soles remembers of which records rows at the beginning of an aligned block are:
// so that a write within one gets the row, and need not look for it in all tables
// of the store. What it says may be out of date, as the row is read again and must
// be of a record that lives.
type soles [1 << 12]sole

type sole struct {
	ino gearsfs.Ino
	at  gearsfs.Place
}

// of returns the slot for the row that begins the block of pos.
func (t *soles) of(s *openStream, pos gearsfs.Pos) *sole {
	block := gearsfs.Pos(blockBytes)
	if s.extents > 0 {
		block = extentBlockBytes
	}
	const spread = 0x9e3779b97f4a7c15 // so that two files do not meet in each block
	return &t[(uint64(pos/block)+uint64(s.node.ino)*spread)%uint64(len(t))]
}

// rowStart is where the row that covers pos begins, as most do.
func (s *openStream) rowStart(pos gearsfs.Pos) gearsfs.Pos {
	if s.extents > 0 {
		return extentBlockStart(pos)
	}
	return blockStart(pos)
}

// addPiece adds a record that lives to the pieces of [pos, end), in place of
// one that is not the last in front of pos any more; last is true where none can
// follow.
func (m *Machine) addPiece(at gearsfs.Place, rec stream.Record, pos, end gearsfs.Pos) (last bool) {
	p := piece{at: at, size: rec.Len(), rec: rec}
	p.rec.Data, p.rec.Extents = nil, stream.CloneExtents(rec.Extents)
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
	return p.end() >= end
}

// seekRecord positions it, which ranges over a file's data stream, on a row
// from which on it meets all records that reach over pos. It looks forward
// first, since going backwards copies a whole value, and those that were there
// before in the same memtable.
func seekRecord(it Iterator, key *[]byte, ino gearsfs.Ino, pos gearsfs.Pos, extents bool) bool {
	starts := [2]gearsfs.Pos{extentBlockStart(pos), blockStart(pos)}
	from := starts[:]
	if !extents {
		from = starts[1:]
	}
	for _, start := range from {
		*key = persist.AppendRecordKey((*key)[:0], ino, gearsfs.DataKey, gearsfs.Place{Pos: start})
		if it.SeekGE(*key) {
			if at, err := persist.ParsePlace(it.Key()); err != nil || at.Pos == start {
				return true // with an error the caller finds it, too
			}
		}
	}
	*key = persist.AppendRecordKey((*key)[:0], ino, gearsfs.DataKey, gearsfs.Place{Pos: pos, Seq: math.MaxUint64})
	return it.SeekLT(*key) || it.First()
}

func parseRecord(it Iterator) (at gearsfs.Place, rec stream.Record, err error) {
	if at, err = persist.ParsePlace(it.Key()); err != nil {
		return at, rec, err
	}
	rec, err = parseRecordRow(it.Value())
	return at, rec, err
}

// parseRecordRow returns a row's record. Its bytes are the row's.
func parseRecordRow(value []byte) (rec stream.Record, err error) {
	var row wire.RecordRow
	if err := row.UnmarshalVTUnsafe(value); err != nil {
		return rec, damaged("record", err)
	}
	if rec, err = soundRecord(&row); err != nil {
		return rec, err
	}
	if rec.Type != "" {
		rec.Type = string([]byte(rec.Type)) // it outlives the iterator's step
	}
	return rec, nil
}

// writing is one write: it walks over the pieces and the gaps between them and
// holds one changed row back, since a gap behind it may let it grow.
type writing struct {
	m     *Machine
	queue *stream.Queue
	now   uint64
	buf   []byte // the bytes of the row in hand
	pay   *payload
	start gearsfs.Pos // where the payload begins
	err   error       // the store's

	held    bool
	at      gearsfs.Place // of the row in hand, where it exists
	oldSize int
	rec     stream.Record
}

func (w *writing) write(pieces []piece, pos, end gearsfs.Pos) {
	from := gearsfs.Pos(0) // the end of the record in front
	for i := range pieces {
		p := &pieces[i]
		if p.at.Pos > pos {
			next := min(p.at.Pos, end)
			w.fill(from, pos, next)
			pos = next
		}
		from = p.end()
		if p.next.changes {
			w.replace(p)
			from = max(from, p.next.to)
			pos = max(pos, p.next.to)
			continue
		}
		pos = w.take(p, pos, end)
	}
	if pos < end {
		w.fill(from, pos, end)
	}
	w.store()
}

// replace makes a piece what was found out that it becomes.
func (w *writing) replace(p *piece) {
	w.store()
	rec, was := &p.next.rec, p.rec.Extents
	w.own(p.next.from, p.next.to, was, rec.Extents)
	w.queue.Replace(p.at, p.size, was, rec)
}

func (w *writing) own(from, to gearsfs.Pos, was, is []gearsfs.Extent) {
	if err := w.m.own(w.pay, uint64(from-w.start), uint64(to-from), was, is); err != nil && w.err == nil {
		w.err = err
	}
}

// take overwrites what the payload, bytes, has for a piece, and returns where it
// goes on. One that may grow, or was changed in part, stays in hand.
func (w *writing) take(p *piece, pos, end gearsfs.Pos) gearsfs.Pos {
	w.store()
	n := int(max(min(p.end(), end), pos) - pos)
	if n == 0 && (w.pay.extents != nil || len(p.rec.Extents) > 0) {
		return pos
	}
	mine := w.pay.data[pos-w.start:][:n]
	grows := p.rec.Block && !p.at.Less(w.queue.State().Cursor) && p.end()%blockBytes != 0
	switch {
	case n == p.size && !grows:
		if n > 0 {
			rec := p.rec
			rec.Data = mine
			w.queue.Replace(p.at, p.size, nil, &rec)
		}
		return pos + gearsfs.Pos(n)
	case n == 0 && (!grows || blockStart(p.at.Pos) != blockStart(pos)):
		return pos
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
	return pos + gearsfs.Pos(n)
}

// fill writes what the payload has for [pos, end) into the gap there, which begins
// at from.
func (w *writing) fill(from, pos, end gearsfs.Pos) {
	if w.pay.extents == nil {
		w.fillBytes(from, pos, w.pay.data[pos-w.start:end-w.start])
		return
	}
	for _, e := range w.pay.cut(nil, uint64(pos-w.start), uint64(end-pos)) {
		if e.Inline() {
			w.fillBytes(from, pos, e.Data)
		} else {
			w.store()
			w.fillStored(pos, pos+gearsfs.Pos(e.Length))
		}
		pos += gearsfs.Pos(e.Length)
		from = pos
	}
}

// fillStored makes rows with extents in a gap.
func (w *writing) fillStored(pos, end gearsfs.Pos) {
	for pos < end {
		to := min(extentBlockStart(pos)+extentBlockBytes, end)
		extents := w.pay.cut(nil, uint64(pos-w.start), uint64(to-pos))
		w.own(pos, to, nil, extents)
		w.queue.Insert(pos, &stream.Record{Extents: extents, Time: w.now, Block: true})
		pos = to
	}
}

// fillBytes writes data into the gap at pos, which begins at from or, where more
// was handed out, at the cursor, or at the head: that passes a gap at the tail when
// the last record is taken.
func (w *writing) fillBytes(from, pos gearsfs.Pos, data []byte) {
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
		w.queue.Replace(w.at, w.oldSize, nil, &w.rec)
	}
	w.held = false
}

func appendZeros(b []byte, n int) []byte {
	if n <= 0 {
		return b
	}
	return append(b, make([]byte, n)...)
}
