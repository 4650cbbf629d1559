package dgm

import "slices"

// A put that is refused for want of room, or given up while it waits for some, may
// come again where that answer is lost; by then a later put of its session may be in
// the stream. The state refuses what it knows to have been passed (package file), but
// much is refused here, without the log. So a put that goes to the log says which
// ones of its session were refused before it.

// refusedPuts are those of a session that were refused in this tenure, but for what
// has come again since. They are guarded by tenure.mu.
type refusedPuts []refusedPut

type refusedPut struct {
	place
	seq uint64
}

// refusedMax bounds them: the oldest are forgotten, whose answers have arrived.
const refusedMax = 1 << 10

// refusedLocked notes that a put was refused, or given up. One whose client has asked
// again is another one's to note.
func (o *op) refusedLocked() {
	seq := o.seq()
	if !o.isPut() || seq == 0 || o.ino == 0 || o.epoch != o.sess.epoch.Load() {
		return
	}
	r := &o.sess.refused
	if len(*r) >= refusedMax {
		*r = slices.Delete(*r, 0, refusedMax/2)
	}
	*r = append(*r, refusedPut{place{o.ino, o.keys[0]}, seq})
}

// comesLocked takes note of a put that comes, maybe again.
func (r *refusedPuts) comesLocked(o *op) {
	if len(*r) == 0 {
		return
	}
	cmd := o.change.Command
	*r = slices.DeleteFunc(*r, func(p refusedPut) bool {
		return p.seq == cmd.Seq || p.seq < cmd.Confirmed && !slices.Contains(cmd.Unconfirmed, p.seq)
	})
}

// beforeLocked are the seqs of what was refused before o, of the puts to its stream.
func (r refusedPuts) beforeLocked(o *op) (seqs []uint64) {
	for _, p := range r {
		if p.seq < o.seq() && p.place == (place{o.ino, o.keys[0]}) {
			seqs = append(seqs, p.seq)
		}
	}
	return seqs
}

// seq is the number of the operation in its session; 0 where it has none.
func (o *op) seq() uint64 {
	if o.change == nil {
		return 0
	}
	return o.change.Command.Seq
}
