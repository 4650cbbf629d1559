package file

import (
	"slices"

	"github.com/emirpasic/gods/v2/trees/redblacktree"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// A stored answer of a take refers to its records instead of repeating them.
// Those of a plain take are gone from their stream; a pin holds back their rows
// until the answer is confirmed. Where something else must remove such rows
// (truncation, drop, the end of the file), they are copied into the answer.

// pins are the rows that answers refer to, by stream and first place.
type pins map[streamKey]*redblacktree.Tree[gearsfs.Place, pin]

// pin holds back the rows in [from, to) for command seq of a session.
type pin struct {
	from, to gearsfs.Place
	session  gearsfs.SessionID
	seq      uint64
}

func (p pins) add(key streamKey, at pin) {
	tree := p[key]
	if tree == nil {
		tree = redblacktree.NewWith[gearsfs.Place, pin](comparePlaces)
		p[key] = tree
	}
	tree.Put(at.from, at)
}

func (p pins) remove(key streamKey, from gearsfs.Place) {
	tree := p[key]
	if tree == nil {
		return
	}
	tree.Remove(from)
	if tree.Empty() {
		delete(p, key)
	}
}

func comparePlaces(a, b gearsfs.Place) int {
	switch {
	case a.Less(b):
		return -1
	case b.Less(a):
		return 1
	}
	return 0
}

// pinned returns the pins that overlap [from, to), in order. Pins of one
// stream never overlap each other.
func (p pins) pinned(key streamKey, from, to gearsfs.Place) []pin {
	tree := p[key]
	if tree == nil {
		return nil
	}
	node, ok := tree.Floor(from)
	if !ok || !from.Less(node.Value.to) {
		if node, ok = tree.Ceiling(from); !ok {
			return nil
		}
	}
	var found []pin
	for it := tree.IteratorAt(node); ; {
		if !it.Key().Less(to) {
			break
		}
		found = append(found, it.Value())
		if !it.Next() {
			break
		}
	}
	return found
}

// places returns the first and last place that a reference is about.
func places(r *wire.Reference) (first, last gearsfs.Place) {
	first = gearsfs.Place{Pos: gearsfs.Pos(r.Pos), Seq: gearsfs.Seq(r.Seq)}
	if r.LastSeq == 0 {
		return first, first
	}
	return first, gearsfs.Place{Pos: gearsfs.Pos(r.LastPos), Seq: gearsfs.Seq(r.LastSeq)}
}

func after(at gearsfs.Place) gearsfs.Place { return gearsfs.Place{Pos: at.Pos, Seq: at.Seq + 1} }

// storeAnswer keeps what a retry of command seq will be answered with.
func (m *Machine) storeAnswer(s *session, seq uint64, answer *wire.Answer) {
	m.keepAnswer(s, &wire.StoredAnswer{
		Seq: seq, Ino: answer.Ino, FirstSeq: answer.FirstSeq, LastSeq: answer.LastSeq, Count: answer.Count,
		Taken: referTo(answer.Records),
	})
}

// keepAnswer stores an answer with its session.
func (m *Machine) keepAnswer(s *session, stored *wire.StoredAnswer) {
	i, _ := findAnswer(&s.row, stored.Seq)
	s.row.Answers = slices.Insert(s.row.Answers, i, stored)
	m.dirtySession(s)
	m.pinAnswer(s.id, stored)
}

// referTo makes references to records that were handed out, one to each run.
func referTo(records []*wire.TakenRecord) (refs []*wire.Reference) {
	for i, rec := range records {
		if n := len(refs); i > 0 && follows(records[i-1], rec) {
			refs[n-1].LastPos, refs[n-1].LastSeq = rec.Pos, rec.Seq
			continue
		}
		refs = append(refs, &wire.Reference{
			Ino: rec.Ino, Key: rec.Key, Pos: rec.Pos, Seq: rec.Seq, Deliveries: rec.Deliveries, Fence: rec.Fence,
		})
	}
	return refs
}

// references are those of an answer and of its steps.
func references(a *wire.StoredAnswer) []*wire.Reference {
	if len(a.Steps) == 0 {
		return a.Taken
	}
	all := slices.Clone(a.Taken)
	for _, step := range a.Steps {
		all = append(all, step.Taken...)
	}
	return all
}

// follows reports whether two records of an answer are of one run: they were
// handed out alike, and no other record can be between them.
func follows(a, b *wire.TakenRecord) bool {
	return a.Deliveries == 1 && b.Deliveries == 1 && b.Seq == a.Seq+1 && b.Pos == a.Pos+takenLength(a) &&
		a.Ino == b.Ino && a.Key == b.Key
}

// takenLength is the length of a record that was handed out.
func takenLength(r *wire.TakenRecord) uint64 {
	n := uint64(len(r.Data))
	for _, e := range r.Extents {
		n += e.Length
	}
	return n
}

// holdsBack reports whether a reference is to rows of records that are gone
// from their stream.
func holdsBack(r *wire.Reference) bool { return r.Fence == 0 && len(r.Kept) == 0 }

// pinAnswer holds back the rows that an answer refers to and that are gone
// from their stream.
func (m *Machine) pinAnswer(id gearsfs.SessionID, a *wire.StoredAnswer) {
	for _, r := range references(a) {
		if holdsBack(r) {
			first, last := places(r)
			key := streamKey{gearsfs.Ino(r.Ino), gearsfs.Key(r.Key)}
			m.sessions.pins.add(key, pin{from: first, to: after(last), session: id, seq: a.Seq})
		}
	}
}

// unpinAnswer lets go of the rows of an answer that is forgotten.
func (m *Machine) unpinAnswer(a *wire.StoredAnswer) error {
	for _, r := range references(a) {
		for _, kept := range r.Kept {
			if err := m.releaseExtents(ExtentsOf(kept.Row.GetExtents())); err != nil {
				return err
			}
		}
		if !holdsBack(r) {
			continue
		}
		first, last := places(r)
		m.sessions.pins.remove(streamKey{gearsfs.Ino(r.Ino), gearsfs.Key(r.Key)}, first)
		n, err := m.node(gearsfs.Ino(r.Ino))
		if err != nil {
			return err
		}
		if n == nil {
			continue
		}
		s, err := m.stream(n, gearsfs.Key(r.Key))
		if err != nil {
			return err
		}
		if s != nil {
			s.queue.Forget(first, after(last))
		}
	}
	return nil
}

// keepPinned moves the rows in [from, to) that answers refer to into those
// answers, as the rows are about to be removed. What a run of them has outside
// of that goes with it: it is there for the answer only.
func (m *Machine) keepPinned(rows *streamRows, from, to gearsfs.Place) error {
	key := streamKey{rows.ino, rows.key}
	for _, p := range m.sessions.pins.pinned(key, from, to) {
		m.sessions.pins.remove(key, p.from)
		s, err := m.session(p.session)
		if err != nil {
			return err
		}
		if s == nil {
			return gearsfs.ErrDamaged.Because("session %v has an answer but no row", p.session)
		}
		i, ok := findAnswer(&s.row, p.seq)
		if !ok {
			return gearsfs.ErrDamaged.Because("session %v has no answer %d", p.session, p.seq)
		}
		for _, r := range references(s.row.Answers[i]) {
			if first, _ := places(r); first != p.from || !holdsBack(r) || r.Ino != uint64(rows.ino) || r.Key != string(rows.key) {
				continue
			}
			err := rows.Scan(p.from, p.to, func(at gearsfs.Place, rec *stream.Record) bool {
				r.Kept = append(r.Kept, &wire.KeptRecord{Pos: uint64(at.Pos), Seq: uint64(at.Seq), Row: &wire.RecordRow{
					Data: slices.Clone(rec.Data), Type: string([]byte(rec.Type)), Time: rec.Time,
					Extents: ExtentsToWire(stream.CloneExtents(rec.Extents)),
				}})
				return true
			})
			if err != nil {
				return err
			}
			for _, kept := range r.Kept {
				rows.handOver(kept, from, to)
			}
		}
		m.dirtySession(s)
	}
	return nil
}

// answerAgain builds a stored answer anew; nil where it refers to a lease that
// is not held any more: then the command is to be applied as if it were new.
func (m *Machine) answerAgain(c *context, cmd *wire.Command, a *wire.StoredAnswer) (*wire.Answer, error) {
	answer := &wire.Answer{Ino: a.Ino, FirstSeq: a.FirstSeq, LastSeq: a.LastSeq, Count: a.Count}
	for _, step := range a.Steps { // what is not held any more is left out: the others are done
		again := &wire.Answer{Ino: step.Ino, FirstSeq: step.FirstSeq, LastSeq: step.LastSeq}
		for _, r := range step.Taken {
			if _, err := m.takenAgain(c, again, r, true); err != nil {
				return nil, err
			}
		}
		answer.Steps = append(answer.Steps, again)
	}
	for _, r := range a.Taken {
		held, err := m.takenAgain(c, answer, r, false)
		if err != nil || !held {
			return nil, err
		}
	}
	switch op := cmd.Op.(type) {
	case *wire.Command_Take, *wire.Command_Settle, *wire.Command_Configure, *wire.Command_Update,
		*wire.Command_Transact, *wire.Command_Move:
		return answer, nil
	case *wire.Command_Put:
		if !op.Put.Append {
			return answer, nil
		}
	}
	if a.Ino == 0 {
		return answer, nil
	}
	n, err := m.node(gearsfs.Ino(a.Ino))
	if err == nil && n != nil {
		answer.Attr, err = m.attr(n) // as it is now
	}
	return answer, err
}

// takenAgain appends the records that a reference names to an answer; held is
// false where one of them was leased and is not held any more: that is left
// out, and with it all behind it unless rest is set.
func (m *Machine) takenAgain(c *context, answer *wire.Answer, r *wire.Reference, rest bool) (held bool, err error) {
	var fence, deadline uint64
	add := func(pos, seq uint64, data []byte, extents []*wire.Extent, typ string, time uint64) {
		answer.Records = append(answer.Records, &wire.TakenRecord{
			Key: r.Key, Pos: pos, Seq: seq, Data: data, Extents: extents, Type: typ, Time: time,
			Deliveries: r.Deliveries, Fence: fence, Ino: r.Ino, Deadline: deadline,
		})
	}
	if len(r.Kept) > 0 {
		for _, k := range r.Kept {
			add(k.Pos, k.Seq, k.Row.Data, k.Row.Extents, k.Row.Type, k.Row.Time)
		}
		return true, nil
	}
	var s *openStream
	n, err := m.node(gearsfs.Ino(r.Ino))
	if err == nil && n != nil {
		s, err = m.stream(n, gearsfs.Key(r.Key))
	}
	if err != nil {
		return false, err
	}
	if s == nil {
		if r.Fence == 0 {
			return false, gearsfs.ErrDamaged.Because("inode %d, stream %q: gone, and so are records that an answer refers to", r.Ino, r.Key)
		}
		return false, nil
	}
	first, last := places(r)
	held = true
	end := gearsfs.Place{}
	err = m.rowsOf(s).Scan(first, after(last), func(at gearsfs.Place, rec *stream.Record) bool {
		if r.Fence != 0 {
			fence = r.Fence + uint64(at.Seq) - r.Seq // in a run both rise by one
			var still bool
			if deadline, still = heldBy(s, at, c.session, fence); !still {
				held = false
				return rest
			}
		}
		add(uint64(at.Pos), uint64(at.Seq), slices.Clone(rec.Data), ExtentsToWire(stream.CloneExtents(rec.Extents)),
			string([]byte(rec.Type)), rec.Time)
		end = at
		return true
	})
	if err != nil || !held || end == last {
		return held, err
	}
	if r.Fence != 0 {
		return false, nil // the last of them were removed
	}
	return false, gearsfs.ErrDamaged.Because("inode %d, stream %q: records that an answer refers to are missing", r.Ino, r.Key)
}
