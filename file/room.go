package file

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// What a command may add under a quota is known before it changes anything; what
// adds nothing is never refused, however much is in use.

// growth is by how many bytes a put lets a stream grow that is in a state.
func growth(state *stream.State, records []*wire.NewRecord) uint64 {
	bytes := bytesOf(records)
	if limit := state.Limits.Bytes; state.Full == gearsfs.FullDropOldest && limit != 0 {
		bytes = min(bytes, left(limit, state.Bytes)) // for the others some go
	}
	return bytes
}

// underOf is the quota of the file of a command, nil where it is still to be made.
func (m *Machine) underOf(t *wire.Target, n *node) (uint64, error) {
	if len(m.quotas.all) == 0 {
		return 0, nil
	}
	if n == nil {
		var err error
		if n, err = m.node(gearsfs.Ino(t.GetDir())); err != nil || n == nil {
			return 0, err
		}
	}
	return n.row.Quota, nil
}

// roomToPut checks whether a put's records have room under the quota of their
// file, nil where that is still to be made.
func (m *Machine) roomToPut(t *wire.Target, n *node, s *openStream, records []*wire.NewRecord) error {
	under, err := m.underOf(t, n)
	if err != nil || under == 0 {
		return err
	}
	return m.room(under, growth(stateOrNew(s), records), 0)
}

// roomToUpdate is roomToPut for a record that replaces all others.
func (m *Machine) roomToUpdate(t *wire.Target, n *node, s *openStream, records []*wire.NewRecord) error {
	under, err := m.underOf(t, n)
	if err != nil || under == 0 {
		return err
	}
	return m.room(under, left(bytesOf(records), stateOrNew(s).Bytes), 0)
}

// roomToWrite checks whether a write of [pos, end) that meets these pieces has
// room: what no record covers becomes part of one, back to the begin of its block.
func (m *Machine) roomToWrite(n *node, state *stream.State, pieces []piece, pos, end gearsfs.Pos) error {
	if n.row.Quota == 0 {
		return nil
	}
	var more, from gearsfs.Pos
	at := pos
	for i := range pieces {
		p := &pieces[i]
		if p.at.Pos > at {
			more += min(p.at.Pos, end) - at + fillBefore(state, from, at)
		}
		from = p.end()
		at = max(at, min(from, end))
	}
	if at < end {
		more += end - at + fillBefore(state, from, at)
	}
	return m.room(n.row.Quota, uint64(more), 0)
}

// fillBefore is how many zeros a new block row has in front of what is written to
// the gap at pos, behind a record that ends at from.
func fillBefore(state *stream.State, from, pos gearsfs.Pos) gearsfs.Pos {
	return pos - min(pos, max(blockStart(pos), from, state.Cursor.Pos, state.Head.Pos))
}

// roomToCopy checks whether copies of streams have room in the place of old ones.
func (m *Machine) roomToCopy(t *wire.Target, n *node, streams, old []*openStream) error {
	under, err := m.underOf(t, n)
	if err != nil || under == 0 {
		return err
	}
	var bytes, gone uint64
	for _, s := range streams {
		bytes += s.queue.State().Bytes
	}
	for _, s := range old {
		gone += s.queue.State().Bytes
	}
	return m.room(under, left(bytes, gone), 0)
}

// more is what a transaction adds under a quota.
type more struct {
	bytes, gone, inodes uint64
}

// room checks whether what the steps of a transaction add together has room, and
// returns the first step, counted from 1, that has none.
func (t *transaction) room(steps []*wire.Step) (failed int, err error) {
	if len(t.m.quotas.all) == 0 {
		return 0, nil
	}
	sums, err := t.sums(steps)
	if err != nil {
		return 0, err
	}
	for i, step := range steps {
		if phase := phaseOf(step); phase != phaseUpdate && phase != phasePut || len(t.steps[i].fresh) == 0 {
			continue
		}
		f := t.steps[i].t.file
		under, err := t.m.underOf(f.target, f.n)
		if err != nil {
			return 0, err
		}
		for under != 0 {
			q := t.m.quotas.all[gearsfs.Ino(under)]
			if q == nil {
				break
			}
			sum := sums[under]
			if err := q.fits(left(sum.bytes, sum.gone), sum.inodes); err != nil {
				return i + 1, err
			}
			under = q.row.Outer
		}
	}
	return 0, nil
}

// sums adds up for each quota what the transaction adds and removes under it.
func (t *transaction) sums(steps []*wire.Step) (map[uint64]more, error) {
	made := make(map[*txFile]bool)
	for i, step := range steps {
		if phase := phaseOf(step); phase == phaseUpdate || phase == phasePut {
			f := t.steps[i].t.file
			made[f] = f.n == nil
		}
	}
	sums := make(map[uint64]more)
	for _, f := range t.files {
		var sum more
		if made[f] {
			sum.inodes = 1
		}
		for _, y := range f.streams {
			sum.bytes += y.state.Bytes
			sum.gone += stateOrNew(y.s).Bytes
		}
		under, err := t.m.underOf(f.target, f.n)
		if err != nil {
			return nil, err
		}
		for under != 0 {
			at := sums[under]
			sums[under] = more{at.bytes + sum.bytes, at.gone + sum.gone, at.inodes + sum.inodes}
			q := t.m.quotas.all[gearsfs.Ino(under)]
			if q == nil {
				break
			}
			under = q.row.Outer
		}
	}
	return sums, nil
}
