package dgm

import (
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// A transaction that waits and settles leases is listed at the streams of these,
// beside the line that it stands in. When one of them ends it is proposed, and the
// state says that the lease is gone: it could wait for ever for what is no use
// any more.
//
// No end is missed: whether the leases are held is read, and the transaction
// listed, with tenure.mu held; who ends one takes it afterwards.

// settles calls f with the receipts that a transaction settles until it returns
// false.
func (o *op) settles(f func(at place, r *wire.Receipt) bool) {
	for _, step := range o.transaction().GetSteps() {
		for _, r := range step.GetSettle().GetReceipts() {
			if at, _ := receiptAt(r); !f(at, r) {
				return
			}
		}
	}
}

// receiptAt is the stream and the place of a receipt.
func receiptAt(r *wire.Receipt) (place, gearsfs.Place) {
	return place{gearsfs.Ino(r.Ino), gearsfs.Key(r.Key)}, gearsfs.Place{Pos: gearsfs.Pos(r.Pos), Seq: gearsfs.Seq(r.Seq)}
}

// listLeases lists a transaction that waits.
func (w *waits) listLeases(o *op) {
	o.settles(func(at place, _ *wire.Receipt) bool {
		if !slices.Contains(o.leasesAt, at) {
			o.leasesAt = append(o.leasesAt, at)
			if w.leases == nil {
				w.leases = make(map[place][]*op)
			}
			w.leases[at] = append(w.leases[at], o)
		}
		return true
	})
}

func (w *waits) unlistLeases(o *op) {
	for _, at := range o.leasesAt {
		left := slices.DeleteFunc(w.leases[at], func(other *op) bool { return other == o })
		if w.leases[at] = left; len(left) == 0 {
			delete(w.leases, at)
		}
	}
	o.leasesAt = nil
}

// lostLease says whether a lease has ended that a transaction settles; at says
// of which stream, the zero place stands for all.
func (t *tenure) lostLease(o *op, of place) (lost bool) {
	o.settles(func(at place, r *wire.Receipt) bool {
		_, record := receiptAt(r)
		lost = (of == place{} || of == at) && !t.vol.machine.Leased(at.ino, at.key, record, o.sess.id, r.Fence)
		return !lost
	})
	return lost
}

// leaseEnded proposes the transactions that wait to settle a lease on a record
// of a stream which is not held any more.
func (t *tenure) leaseEnded(at place) {
	t.mu.Lock()
	var run []*op
	if t.over == nil {
		for _, o := range slices.Clone(t.waits.leases[at]) {
			if t.lostLease(o, at) {
				t.waits.leave(o)
				t.proposeTransactionLocked(o)
				run = append(run, o)
			}
		}
	}
	t.mu.Unlock()
	t.submit(run...)
}
