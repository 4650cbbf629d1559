package file

import (
	"bytes"
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// A row with extents is overwritten by cutting them: bytes that come with the
// command stand among them as inline extents. Block rows of that kind lie within
// an aligned block of extentBlockBytes.
const extentBlockBytes = 128 << 10

// Bounds of a row, and of what one command brings. Where a row would exceed
// them, its node is to rewrite it.
const (
	rowExtentsMax = 128
	// payloadExtentsMax is less, so that a row that was rewritten takes them.
	payloadExtentsMax = 96
	// rowInlineMax bounds the inline bytes of a row with extents: each overwrite
	// writes them again. A row that had none may get more in one step.
	rowInlineMax = blockBytes
)

func extentBlockStart(pos gearsfs.Pos) gearsfs.Pos { return pos - pos%extentBlockBytes }

// payload is what a command writes: bytes, or extents.
type payload struct {
	data    []byte
	extents []gearsfs.Extent
	length  uint64
	// shared says that the extents are those of other rows; else the command
	// brings them, and each page of them is in one extent alone.
	shared bool
	owned  []uint64 // of each extent that is brought: pages in front of it a row has got
}

func payloadOf(data []byte, extents []*wire.Extent) payload {
	if len(extents) == 0 {
		return payload{data: data, length: uint64(len(data))}
	}
	p := payload{extents: ExtentsOf(extents)}
	p.length = stream.LengthOf(p.extents)
	p.owned = make([]uint64, len(p.extents))
	return p
}

// cut appends n bytes of the payload from off on to a list of extents.
func (p *payload) cut(dst []gearsfs.Extent, off, n uint64) []gearsfs.Extent {
	if p.extents == nil {
		if n == 0 {
			return dst
		}
		inline := [1]gearsfs.Extent{gearsfs.InlineExtent(p.data)}
		return stream.AppendCut(dst, inline[:], off, n)
	}
	return stream.AppendCut(dst, p.extents, off, n)
}

// own accounts for a row that gets n bytes of the payload from off on, and was
// some extents and is others.
func (m *Machine) own(p *payload, off, n uint64, was, is []gearsfs.Extent) error {
	if p.extents == nil {
		return nil
	}
	if p.shared {
		a := tidyRuns(appendRuns(m.scratch.runs[:0], was))
		m.scratch.runs = a
		b := tidyRuns(appendRuns(m.scratch.runs2[:0], is))
		m.scratch.runs2 = b
		return subtractRuns(b, a, m.addRefs)
	}
	for i := 0; i < len(p.extents) && n > 0; i++ {
		e := &p.extents[i]
		if off >= e.Length {
			off -= e.Length
			continue
		}
		part := min(n, e.Length-off)
		n -= part
		if !e.Inline() {
			cut := e.Cut(off, part)
			first := cut.At / gearsfs.PageBytes
			end := first + cut.Pages()
			if first < p.owned[i] { // the row in front has a part of that page
				if err := m.addRefs(pageRun{e.Origin, e.Segment, first, min(p.owned[i], end)}); err != nil {
					return err
				}
			}
			p.owned[i] = max(p.owned[i], end)
		}
		off = 0
	}
	return nil
}

// checkExtents checks extents that a command brings and returns their length.
func checkExtents(extents []*wire.Extent) (bytes uint64, err error) {
	if len(extents) > rowExtentsMax {
		return 0, gearsfs.ErrInvalid.Because("%d extents, more than %d", len(extents), rowExtentsMax)
	}
	for _, e := range extents {
		if e == nil {
			return 0, gearsfs.ErrInvalid.Because("an extent is missing")
		}
		if err := ExtentOf(e).Check(); err != nil {
			return 0, err
		}
		bytes += e.Length
	}
	return bytes, nil
}

// checkPayload checks what a write brings.
func checkPayload(data []byte, extents []*wire.Extent) error {
	if len(data) > gearsfs.RecordBytesMax {
		return gearsfs.ErrTooBig
	}
	if len(extents) == 0 {
		return nil
	}
	n, err := checkExtents(extents)
	switch {
	case err != nil:
		return err
	case len(data) > 0:
		return errBothForms
	case n > gearsfs.RecordBytesMax:
		return gearsfs.ErrTooBig
	case len(extents) > payloadExtentsMax:
		return gearsfs.ErrInvalid.Because("a write has at most %d extents", payloadExtentsMax)
	case !disjoint(appendRuns(nil, ExtentsOf(extents))):
		return errTwice
	}
	return nil
}

var (
	errBothForms = gearsfs.ErrInvalid.Because("bytes and extents at once")
	errTwice     = gearsfs.ErrInvalid.Because("a page is in two extents")
)

// fragmented is gearsfs.ErrFragmented of a row.
type fragmented struct{ row *wire.FragmentedRow }

func (f *fragmented) Error() string { return gearsfs.ErrFragmented.Reason }
func (f *fragmented) Unwrap() error { return gearsfs.ErrFragmented }

// spliced is what becomes of a piece with extents, or that gets some.
type spliced struct {
	changes  bool
	from, to gearsfs.Pos // what is written of it, or behind it
	rec      stream.Record
}

// splice finds out what becomes of the pieces that have extents, or get some,
// where a payload is written at pos. A *fragmented error where one can't have it:
// then nothing has changed.
func (m *Machine) splice(s *openStream, pieces []piece, pos gearsfs.Pos, p *payload) error {
	end := pos + gearsfs.Pos(p.length)
	for i := range pieces {
		c := &pieces[i]
		if len(c.rec.Extents) == 0 && p.extents == nil || c.end() < pos {
			continue
		}
		from, to := max(c.at.Pos, pos), min(c.end(), end)
		grown := to
		if to == c.end() && p.extents != nil && growsByExtents(s, c) {
			grown = min(end, extentBlockStart(c.at.Pos)+extentBlockBytes)
			if i+1 < len(pieces) {
				grown = min(grown, pieces[i+1].at.Pos)
			}
		}
		if from < grown {
			c.splice(pos, p, from, grown)
			if c.next.fits(c) {
				continue
			}
			c.next = spliced{}
		}
		if from >= to {
			continue
		}
		c.splice(pos, p, from, to)
		if !c.next.fits(c) {
			return &fragmented{c.fragmentedRow(s)}
		}
	}
	return nil
}

// growsByExtents says whether extents may be added behind a piece.
func growsByExtents(s *openStream, c *piece) bool {
	return c.rec.Block && len(c.rec.Extents) > 0 && !c.at.Less(s.queue.State().Cursor) && c.end()%extentBlockBytes != 0
}

// list is what the piece holds, as extents.
func (p *piece) list() []gearsfs.Extent {
	if len(p.rec.Extents) > 0 || p.size == 0 {
		return p.rec.Extents
	}
	return []gearsfs.Extent{{Length: uint64(p.size), Data: p.rec.Data}}
}

// splice puts what a payload that is written at pos has for [from, to) into what
// the piece holds.
func (p *piece) splice(pos gearsfs.Pos, pay *payload, from, to gearsfs.Pos) {
	was := p.list()
	next := make([]gearsfs.Extent, 0, len(was)+3)
	next = stream.AppendCut(next, was, 0, uint64(from-p.at.Pos))
	next = pay.cut(next, uint64(from-pos), uint64(to-from))
	if to < p.end() {
		next = stream.AppendCut(next, was, uint64(to-p.at.Pos), uint64(p.end()-to))
	}
	p.next = spliced{changes: true, from: from, to: to, rec: p.rowOf(p.at.Pos, next)}
}

// rowOf is what a piece becomes, or a part of it, that begins at pos and has those
// extents: a row of bytes where it may be one.
func (p *piece) rowOf(pos gearsfs.Pos, extents []gearsfs.Extent) stream.Record {
	rec := stream.Record{Type: p.rec.Type, Time: p.rec.Time, Block: p.rec.Block, Extents: extents}
	last := pos + gearsfs.Pos(stream.LengthOf(extents)) - 1
	if len(extents) == 1 && len(extents[0].Data) > 0 && (!rec.Block || blockStart(pos) == blockStart(last)) {
		rec.Data, rec.Extents = extents[0].Data, nil
	}
	return rec
}

// fits says whether a piece may become that. Where it may not, and may once its
// row is rewritten as one extent.
func (n *spliced) fits(p *piece) bool {
	if n.from <= p.at.Pos && n.to >= p.end() {
		return true
	}
	is := inlineBytes(n.rec.Extents)
	was := inlineBytes(p.rec.Extents)
	return len(n.rec.Extents) <= rowExtentsMax && (was == 0 || is <= rowInlineMax || is <= was)
}

func inlineBytes(extents []gearsfs.Extent) (n int) {
	for i := range extents {
		n += len(extents[i].Data)
	}
	return n
}

func (p *piece) fragmentedRow(s *openStream) *wire.FragmentedRow {
	return &wire.FragmentedRow{
		Ino: uint64(s.node.ino), Key: string(s.key), Pos: uint64(p.at.Pos), Seq: uint64(p.at.Seq),
		Extents: ExtentsToWire(stream.CloneExtents(p.list())),
	}
}

// applyRewrite has a row refer to other extents with the same bytes, where it is
// still what it was.
func (m *Machine) applyRewrite(_ *context, op *wire.Rewrite) *wire.Answer {
	n, err := m.reach(gearsfs.Ino(op.Ino))
	var s *openStream
	if err == nil && n != nil && isFile(n.row.Mode) {
		s, err = m.stream(n, gearsfs.Key(op.Key))
	}
	if err == nil {
		err = checkPayload(nil, op.Extents)
	}
	if err == nil && s == nil {
		err = errRowGone
	}
	if err == nil {
		err = m.rewrite(s, op)
	}
	if err != nil {
		return m.refuse(err)
	}
	return &wire.Answer{}
}

var errRowGone = gearsfs.ErrGone.Because("the row is not what it was")

func (m *Machine) rewrite(s *openStream, op *wire.Rewrite) error {
	at := gearsfs.Place{Pos: gearsfs.Pos(op.Pos), Seq: gearsfs.Seq(op.Seq)}
	rows := m.rowsOf(s)
	row, ok, err := rows.find(at)
	if err != nil {
		return err
	}
	old := piece{at: at, size: row.Len(), rec: row}
	is := ExtentsOf(op.Extents)
	if !ok || !s.queue.Lives(at) || !sameExtents(old.list(), ExtentsOf(op.Was)) || stream.LengthOf(is) != uint64(old.size) {
		return errRowGone
	}
	was := row.Extents
	row.Data, row.Extents = nil, is
	s.queue.Rewrite(at, was, &row)
	m.dirtyStream(s)
	return nil
}

func sameExtents(a, b []gearsfs.Extent) bool {
	return slices.EqualFunc(a, b, func(x, y gearsfs.Extent) bool {
		return x.Origin == y.Origin && x.Segment == y.Segment && x.At == y.At && x.Size == y.Size &&
			x.Offset == y.Offset && x.Length == y.Length && bytes.Equal(x.Sums, y.Sums) && bytes.Equal(x.Data, y.Data)
	})
}

// checkForm checks the extents of a record that is to be put.
func checkForm(r *wire.NewRecord) error {
	if len(r.Extents) == 0 {
		return nil
	}
	if len(r.Data) > 0 {
		return errBothForms
	}
	_, err := checkExtents(r.Extents)
	return err
}

// checkDisjoint checks that no page is in two extents of what is to be put.
func checkDisjoint(records []*wire.NewRecord) error {
	var runs []pageRun
	for _, r := range records {
		if len(r.Extents) > 0 {
			runs = appendRuns(runs, ExtentsOf(r.Extents))
		}
	}
	if !disjoint(runs) {
		return errTwice
	}
	return nil
}
