package file

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// The mode bits of fallocate(2).
const (
	allocKeepSize  = 0x01
	allocPunchHole = 0x02
	allocZeroRange = 0x10
)

// truncate sets the size of a file, counted from base or, without it, from the
// head. It changes nothing where it returns an error other than the store's.
func (m *Machine) truncate(c *context, n *node, size uint64, base *uint64) error {
	n, s, err := m.content(c, uint64(n.ino))
	if err != nil {
		return err
	}
	from := uint64(0)
	if s != nil {
		from = uint64(s.queue.State().Head.Pos)
	}
	if base != nil {
		from = *base
	}
	if from > gearsfs.FileBytesMax || size > gearsfs.FileBytesMax-from {
		return gearsfs.ErrTooBig
	}
	if s == nil && from+size == 0 {
		m.wrote(c, n)
		return nil
	}
	if s == nil {
		s = m.makeStream(n, gearsfs.DataKey)
	}
	return m.setTail(c, n, s, gearsfs.Pos(from+size))
}

// setTail moves the end of a file's bytes.
func (m *Machine) setTail(c *context, n *node, s *openStream, tail gearsfs.Pos) error {
	state := s.queue.State()
	was := *state
	empty := state.Drained() && state.Tail == state.Head.Pos
	if tail == state.Tail && tail > state.Head.Pos || empty && tail <= state.Head.Pos {
		m.wrote(c, n)
		return nil
	}
	if err := m.checkRemoval(s, tail); err != nil {
		return err
	}
	room := tail < state.Tail || tail <= state.Head.Pos
	grows := tail > state.Tail
	if err := s.queue.SetTail(tail); err != nil {
		return err
	}
	switch {
	case grows: // a taker would miss the zeros
		state.Blocks = true
	case state.Tail == state.Head.Pos: // what comes next makes it the one or the other
		state.Blocks = false
	}
	m.changedBytes(c, n, s, was, room)
	return nil
}

func (m *Machine) applyAllocate(c *context, op *wire.Allocate) *wire.Answer {
	n, s, err := m.content(c, op.Ino)
	if err == nil {
		err = checkAllocate(op)
	}
	if err == nil {
		err = m.allocate(c, n, s, op)
	}
	if err != nil {
		return m.refuse(err)
	}
	return m.answerAttr(n)
}

func checkAllocate(op *wire.Allocate) error {
	switch op.Mode {
	case 0, allocKeepSize, allocPunchHole | allocKeepSize, allocZeroRange, allocZeroRange | allocKeepSize:
	default:
		return gearsfs.ErrUnsupported
	}
	switch {
	case op.Length == 0:
		return gearsfs.ErrInvalid
	case op.Pos > gearsfs.FileBytesMax || op.Length > gearsfs.FileBytesMax-op.Pos:
		return gearsfs.ErrTooBig
	}
	return nil
}

// allocate is fallocate(2). Space is not reserved: what is promised is the
// size, and that what is zeroed reads as zeros.
func (m *Machine) allocate(c *context, n *node, s *openStream, op *wire.Allocate) error {
	pos, end := gearsfs.Pos(op.Pos), gearsfs.Pos(op.Pos+op.Length)
	if s != nil && op.Mode&(allocPunchHole|allocZeroRange) != 0 {
		if err := m.zero(c, n, s, pos, min(end, s.queue.State().Tail)); err != nil {
			return err
		}
	}
	if op.Mode&allocKeepSize != 0 {
		return nil
	}
	if s == nil {
		s = m.makeStream(n, gearsfs.DataKey)
	}
	if end <= s.queue.State().Tail {
		return nil
	}
	return m.setTail(c, n, s, end)
}

// zero makes [pos, end) read as zeros: block rows that lie in it and were not
// handed out go, those with extents are cut, other records keep their boundaries.
func (m *Machine) zero(c *context, n *node, s *openStream, pos, end gearsfs.Pos) error {
	if pos >= end {
		return nil
	}
	pieces, err := m.pieces(s, pos, end)
	if err != nil {
		return err
	}
	zeros := payload{extents: []gearsfs.Extent{{Length: uint64(end - pos)}}}
	for i := range pieces {
		p := &pieces[i]
		from, to := max(p.at.Pos, pos), min(p.end(), end)
		if from >= to || len(p.rec.Extents) == 0 || p.goesIn(s, from, to) {
			continue
		}
		p.splice(pos, &zeros, from, to)
		if !p.next.fits(p) {
			return &fragmented{p.fragmentedRow(s)}
		}
	}
	was := *s.queue.State()
	for i := range pieces {
		p := &pieces[i]
		from, to := max(p.at.Pos, pos), min(p.end(), end)
		if from >= to {
			continue
		}
		if err := m.zeroPiece(s, p, from, to); err != nil {
			return err
		}
	}
	m.changedBytes(c, n, s, was, false)
	return nil
}

// goesIn says whether a piece is removed where [from, to) of it become zeros.
func (p *piece) goesIn(s *openStream, from, to gearsfs.Pos) bool {
	return p.rec.Block && int(to-from) == p.size && !p.at.Less(s.queue.State().Cursor)
}

func (m *Machine) zeroPiece(s *openStream, p *piece, from, to gearsfs.Pos) error {
	switch {
	case p.goesIn(s, from, to):
		return s.queue.Remove(p.at, p.size)
	case p.next.changes:
		return m.cutHoles(s, p)
	}
	rec := stream.Record{Type: p.rec.Type, Time: p.rec.Time, Block: p.rec.Block}
	m.scratch.block = append(m.scratch.block[:0], p.rec.Data...)
	if len(p.rec.Data) == 0 {
		m.scratch.block = appendZeros(m.scratch.block, p.size)
	}
	clear(m.scratch.block[from-p.at.Pos : to-p.at.Pos])
	rec.Data = m.scratch.block
	s.queue.Replace(p.at, p.size, nil, &rec)
	return nil
}
