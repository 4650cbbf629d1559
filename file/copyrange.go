package file

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// Bounds of one CopyRange: it goes on with another.
const (
	rangeBytesMax  = 64 << 20
	rangeInlineMax = 1 << 20
	rangePiecesMax = 1024
	// rangeGapMin is from which length on a gap is made a gap of the copy; shorter
	// ones become zeros between bytes.
	rangeGapMin = gearsfs.PageBytes
)

// applyCopyRange writes bytes of a file into another, or into the same where that
// does not overlap: what is in the block store is shared then, the rest copied. It
// copies from the first byte on, up to the first gap, or as much of that as there
// is, and no more than one entry may do; the answer says how many.
func (m *Machine) applyCopyRange(c *context, op *wire.CopyRange) *wire.Answer {
	count, n, err := m.copyRange(c, op)
	if err != nil {
		return m.refuse(err)
	}
	answer := m.answerAttr(n)
	answer.Count = count
	return answer
}

func (m *Machine) copyRange(c *context, op *wire.CopyRange) (count uint64, n *node, err error) {
	from, err := m.queueFile(c, &wire.Target{Ino: op.FromIno}, mayRead)
	if err == nil && from == nil {
		err = gearsfs.ErrStale
	}
	if err != nil {
		return 0, nil, err
	}
	n, to, err := m.content(c, op.Ino)
	if err != nil {
		return 0, nil, err
	}
	if err := checkRange(op); err != nil {
		return 0, nil, err
	}
	source, err := m.stream(from, gearsfs.DataKey)
	if err != nil || source == nil || op.FromPos >= uint64(source.queue.State().Tail) {
		return 0, n, err
	}
	length := min(op.Length, uint64(source.queue.State().Tail)-op.FromPos, rangeBytesMax)
	pay, gap, err := m.rangePayload(source, gearsfs.Pos(op.FromPos), length)
	if err != nil || pay.length+gap == 0 {
		return 0, n, err
	}
	if to != nil && to.queue.State().Type != "" {
		return 0, nil, gearsfs.ErrType.Because("the stream is of type %q: records are put into it", to.queue.State().Type)
	}
	pos := gearsfs.Pos(op.Pos)
	if gap > 0 {
		return gap, n, m.copyGap(c, n, to, pos, pos+gearsfs.Pos(gap))
	}
	return pay.length, n, m.write(c, n, to, pos, pay)
}

func checkRange(op *wire.CopyRange) error {
	switch {
	case op.Length > gearsfs.FileBytesMax || op.Pos > gearsfs.FileBytesMax-op.Length || op.FromPos > gearsfs.FileBytesMax-op.Length:
		return gearsfs.ErrTooBig
	case op.Ino == op.FromIno && op.Pos < op.FromPos+op.Length && op.FromPos < op.Pos+op.Length:
		return gearsfs.ErrInvalid.Because("the ranges overlap")
	}
	return nil
}

// copyGap makes [pos, end) of a file zeros, and its size no less than end.
func (m *Machine) copyGap(c *context, n *node, s *openStream, pos, end gearsfs.Pos) error {
	if s == nil {
		s = m.makeStream(n, gearsfs.DataKey)
	}
	if pos < s.queue.State().Head.Pos {
		return errTaken
	}
	if err := m.zero(c, n, s, pos, min(end, s.queue.State().Tail)); err != nil {
		return err
	}
	if end <= s.queue.State().Tail {
		return nil
	}
	return m.setTail(c, n, s, end)
}

// rangePayload returns what a stream has from pos on, up to a gap; or how long the
// gap is that begins there.
func (m *Machine) rangePayload(s *openStream, pos gearsfs.Pos, length uint64) (pay *payload, gap uint64, err error) {
	end := pos + gearsfs.Pos(length)
	r := ranging{pay: &payload{shared: true}, pos: pos, at: pos, end: end}
	rows := m.rowsOf(s)
	it, err := m.store.Scan(rows.recordRange(gearsfs.Place{}, gearsfs.Place{Pos: end}))
	if err != nil {
		return nil, 0, err
	}
	for ok := seekRecord(it, &m.scratch.key, s.node.ino, pos, s.extents > 0); ok; ok = it.Next() {
		at, rec, err := parseRecord(it)
		if err != nil {
			it.Close() // the first error is the one to tell
			return nil, 0, err
		}
		if s.queue.Lives(at) && (!r.add(at.Pos, &rec) || r.at >= r.end) {
			break
		}
	}
	if err := it.Close(); err != nil {
		return nil, 0, err
	}
	if !r.full && r.gap == 0 && r.at < r.end {
		r.addGap(uint64(r.end - r.at))
	}
	r.pay.length = stream.LengthOf(r.pay.extents)
	return r.pay, r.gap, nil
}

// ranging collects a range of a stream's bytes.
type ranging struct {
	pay          *payload
	pos, at, end gearsfs.Pos // it is collected up to at
	gap          uint64      // at the begin; then nothing else is collected
	inline       uint64
	pieces       int
	full         bool
}

// add adds a record; false where none is to follow.
func (r *ranging) add(pos gearsfs.Pos, rec *stream.Record) bool {
	size := gearsfs.Pos(rec.Len())
	from, to := max(pos, r.at), min(pos+size, r.end)
	if from >= to {
		return true
	}
	if from > r.at && !r.addGap(uint64(from-r.at)) {
		return false
	}
	list := rec.Extents
	if len(list) == 0 {
		list = []gearsfs.Extent{gearsfs.InlineExtent(rec.Data)}
	}
	for _, e := range stream.CloneExtents(stream.AppendCut(nil, list, uint64(from-pos), uint64(to-from))) {
		if stream.Zeros(&e) {
			if !r.addGap(e.Length) {
				return false
			}
			continue
		}
		if !r.addExtent(e) {
			return false
		}
	}
	r.pieces++
	r.full = r.pieces >= rangePiecesMax
	return !r.full
}

func (r *ranging) addExtent(e gearsfs.Extent) bool {
	if r.gap > 0 || len(r.pay.extents) >= payloadExtentsMax || r.inline+uint64(len(e.Data)) > rangeInlineMax && r.at > r.pos {
		r.full = true
		return false
	}
	r.pay.extents = stream.AppendCut(r.pay.extents, []gearsfs.Extent{e}, 0, e.Length)
	r.inline += uint64(len(e.Data))
	r.at += gearsfs.Pos(e.Length)
	return true
}

// addGap adds zeros: as a gap where nothing was collected yet, in front of bytes
// where it is short.
func (r *ranging) addGap(n uint64) bool {
	switch {
	case r.at == r.pos+gearsfs.Pos(r.gap) && len(r.pay.extents) == 0:
		r.gap += n
		r.at += gearsfs.Pos(n)
		return true
	case n < rangeGapMin:
		return r.addExtent(gearsfs.InlineExtent(make([]byte, n)))
	}
	r.full = true
	return false
}
