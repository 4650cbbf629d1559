package dgm

import (
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// A take of several keys may name streams of both kinds. It is served from one of
// them, the first that has a record: from memory at once, from the disk through
// the log, with the keys that are there. That is as atomic as any take: which
// stream it will be is decided before, and where that has nothing left by then
// the take waits on at all of them.
//
// A take that is asked for again may have been served from either side, without
// its client having heard of it. Answers from memory are found before; then the
// log has to say, for it knows those from the disk, and what is on its way there.

// takeMemoryLocked takes from the first stream in memory that has a record, or
// says that the take is to go to the log.
func (t *tenure) takeMemoryLocked(o *op, take *wire.Take) (answer *wire.Answer, further func(), err error) {
	m := &t.vol.memory
	if err := file.CheckLease(take, o.sess.id); err != nil {
		return nil, nil, err
	}
	if err := m.vol.machine.MayWait(o.ino, true, true, o.sess.caller); err != nil {
		return nil, nil, err
	}
	onDisk := slices.DeleteFunc(slices.Clone(o.keys), func(key gearsfs.Key) bool { return t.inMemory(place{o.ino, key}) })
	if o.change.Retry && len(onDisk) > 0 && !o.logged {
		return nil, func() { t.takeOnDisk(o, onDisk) }, nil
	}
	drained := true
	for _, key := range o.keys {
		at := place{o.ino, key}
		if slices.Contains(onDisk, key) {
			st := m.vol.machine.StreamState(o.ino, key)
			if st.Ready > 0 && !o.logged {
				return nil, func() { t.takeOnDisk(o, onDisk) }, nil
			}
			drained = drained && st.Drained()
			continue
		}
		s := m.currentLocked(at)
		if s.State().Ready > 0 {
			answer, err = m.handOutLocked(o, s, take)
			return answer, nil, err
		}
		drained = drained && s.State().Sealed && s.State().Drained()
	}
	if drained {
		return nil, nil, gearsfs.ErrEnd
	}
	return nil, nil, gearsfs.ErrEmpty
}

// handOutLocked takes or leases records that are there.
func (m *memory) handOutLocked(o *op, s *memoryStream, take *wire.Take) (*wire.Answer, error) {
	var taken []stream.Taken
	var err error
	if take.Lease {
		g := stream.Grant{Holder: o.sess.id, Fence: m.nextFence(), Tries: take.Tries}
		if take.ByReceipt {
			g.Holder = gearsfs.SessionID{}
		}
		if take.LeaseFor != 0 {
			g.Deadline = m.vol.group.Time() + take.LeaseFor
		}
		taken, err = s.Lease(nil, int(take.Max), gearsfs.BatchBytesMax, g)
		m.fence += uint64(len(taken))
	} else {
		taken, err = s.Take(nil, int(take.Max), gearsfs.BatchBytesMax, false)
	}
	answer := &wire.Answer{Ino: uint64(s.at.ino), Records: shown(s.at, taken)}
	s.Clean()
	m.touchLocked(s.at)
	return answer, err
}

// nextFence is the fence of the next lease: no former process gave it, and none
// did whose clock went right.
func (m *memory) nextFence() uint64 {
	if m.fence == 0 {
		m.fence = m.vol.group.Time()
	}
	return m.fence
}

// takeOnDisk sends a take to the log, with those of its keys that are on disk.
func (t *tenure) takeOnDisk(o *op, onDisk []gearsfs.Key) {
	take := o.change.Command.GetTake()
	all := take.Keys
	take.Keys = keysToWire(onDisk)
	o.then = func(answer *wire.Answer, err error) {
		take.Keys, o.then = all, nil
		if err != nil {
			o.answered(answer, err)
			return
		}
		switch gearsfs.Code(answer.Code) {
		case gearsfs.ErrEmpty.Code, gearsfs.ErrEnd.Code:
			o.logged, o.change.Retry = true, false
			t.submitMemory(o)
		case gearsfs.ErrUnsupported.Code: // one of them is in memory by now
			o.relaunch()
		default:
			o.answered(answer, nil)
		}
	}
	t.toLog(o)
}

// settleMemoryLocked settles leases of streams in memory. Where there are some on
// disk, too, these are settled in between: what can be seen to fail fails before
// anything is changed, but the settlement is one step only in each of the two
// places.
func (t *tenure) settleMemoryLocked(o *op, settle *wire.Settle) (answer *wire.Answer, further func(), err error) {
	m := &t.vol.memory
	var here, onDisk []*wire.Receipt
	for _, r := range settle.Receipts {
		if at, _ := receiptAt(r); t.inMemory(at) {
			here = append(here, r)
		} else {
			onDisk = append(onDisk, r)
		}
	}
	if err := file.CheckSettle(settle); err != nil {
		return nil, nil, err
	}
	if err := m.checkSettleLocked(o, here); err != nil {
		if o.logged { // what is on disk was settled
			err = gearsfs.ErrGone.Because("a lease of a stream in memory has ended; those on disk were settled")
		}
		return nil, nil, err
	}
	if len(onDisk) > 0 && !o.logged {
		return nil, func() { t.settleOnDisk(o, settle, onDisk) }, nil
	}
	return &wire.Answer{}, nil, m.settleLocked(settle, here)
}

// settleOnDisk sends a settlement to the log, with those of its receipts that are
// of streams on disk.
func (t *tenure) settleOnDisk(o *op, settle *wire.Settle, onDisk []*wire.Receipt) {
	all := settle.Receipts
	settle.Receipts = onDisk
	o.then = func(answer *wire.Answer, err error) {
		settle.Receipts, o.then = all, nil
		if err != nil || answer.Code != 0 {
			o.answered(answer, err)
			return
		}
		o.logged = true
		t.submitMemory(o)
	}
	t.toLog(o)
}
