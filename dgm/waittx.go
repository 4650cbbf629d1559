package dgm

import (
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// A transaction that can't be done yet waits, holding nothing, at the streams
// of one step that it lacks something for: records, room, or a condition. When
// one of these changes it is looked at as a whole: it is proposed where nothing
// is seen to be lacking, goes to wait where something else is, or waits on.
//
// No wake-up is lost: what it lacks is read, and it joins the line there, with
// tenure.mu held; who changes the stream after that has to take it to wake. What
// is seen here is less than what the state machine sees (of the bytes that
// takes make room for, of the first record's seq): where that refuses what seemed
// possible, and the streams of the step have not changed since before it was
// proposed, the transaction waits for such a change.

// startTransact sends a transaction to the log: what can never be done is
// refused there before it waits.
func (t *tenure) startTransact(o *op) canceller {
	if err := t.resolveAll(o); err != nil {
		o.refuse(err)
		return nil
	}
	for i, step := range o.transaction().Steps {
		if target := stepTarget(step); target != nil && (*target).Ino == 0 && pathAt(o.change, i) == "" {
			o.fail(gearsfs.ErrInvalid.Because("step %d names no file", i+1))
			return nil
		}
		if take := step.GetTake(); take != nil {
			take.Max = max(1, take.Max)
		}
		if put := step.GetPut(); put != nil {
			put.Retry = false // is the node's to say
		}
	}
	t.mu.Lock()
	if o.ticket == 0 {
		o.ticket = t.waits.tickets.Next()
	}
	o.keys = []gearsfs.Key{} // it may wait
	t.proposeTransactionLocked(o)
	t.mu.Unlock()
	t.submit(o.byItself()...)
	return o
}

// proposeTransactionLocked makes a transaction proposed that waits nowhere.
func (t *tenure) proposeTransactionLocked(o *op) {
	o.state = opProposed
	o.versions = t.versions(o.versions[:0], o.transaction().Steps)
	var l lacking
	for _, step := range o.transaction().Steps {
		if take := step.GetTake(); take != nil {
			if at, ok := l.take(t, take); ok {
				line := &t.waits.makeSpot(at.ino, at.key).takes
				line.promised += uint64(take.Max)
				o.promised = append(o.promised, promise{at, line, uint64(take.Max)})
			}
		}
	}
}

// placesOf are the streams of a step that may come to be as it needs them.
func placesOf(step *wire.Step) []place {
	var ino gearsfs.Ino
	if target := stepTarget(step); target != nil {
		ino = gearsfs.Ino((*target).GetIno())
	}
	switch op := step.Op.(type) {
	case *wire.Step_Condition:
		return []place{{ino, gearsfs.Key(op.Condition.Key)}}
	case *wire.Step_Put:
		return []place{{ino, gearsfs.Key(op.Put.Key)}}
	case *wire.Step_Take:
		places := make([]place, 0, len(op.Take.Keys))
		for _, key := range op.Take.Keys {
			if at := (place{ino, gearsfs.Key(key)}); !slices.Contains(places, at) {
				places = append(places, at)
			}
		}
		return places
	}
	return nil
}

// versions appends those of the streams of steps.
func (t *tenure) versions(to []uint64, steps []*wire.Step) []uint64 {
	for _, step := range steps {
		for _, at := range placesOf(step) {
			st := t.stateOf(at.ino, at.key)
			to = append(to, st.Version)
		}
	}
	return to
}

// changedSince says whether the streams of a step have changed since the
// transaction was proposed.
func (t *tenure) changedSince(o *op, failed int) bool {
	steps := o.transaction().Steps
	from := 0
	for _, step := range steps[:failed] {
		from += len(placesOf(step))
	}
	now := t.versions(nil, steps[failed:failed+1])
	return !slices.Equal(now, o.versions[from:from+len(now)])
}

// mayPass says whether a transaction was refused for what may come to be.
func (o *op) mayPass(answer *wire.Answer) bool {
	tx := o.transaction()
	if tx == nil || answer.FailedStep == 0 || int(answer.FailedStep) > len(tx.Steps) {
		return false
	}
	step := tx.Steps[answer.FailedStep-1]
	switch gearsfs.Code(answer.Code) {
	case gearsfs.ErrEmpty.Code:
		return step.GetTake() != nil
	case gearsfs.ErrUnmet.Code:
		return step.GetCondition() != nil
	case gearsfs.ErrFull.Code:
		put := step.GetPut()
		if put == nil {
			return false
		}
		st := o.ten.stateOf(gearsfs.Ino(put.Target.GetIno()), gearsfs.Key(put.Key))
		return st.Full == gearsfs.FullWait
	}
	return false
}

// parkTransaction lets a transaction wait that was refused because of a step. It
// reports false where it may not wait.
func (t *tenure) parkTransaction(o *op, failed int) bool {
	t.mu.Lock()
	wake := o.takeBackLocked()
	if !t.mayWaitLocked(o) {
		t.mu.Unlock()
		t.wakeAll(wake)
		return false
	}
	lacks := t.lacksLocked(o)
	again := lacks < 0 && t.changedSince(o, failed) || t.lostLease(o, place{})
	switch {
	case again:
		t.proposeTransactionLocked(o)
	case lacks < 0:
		t.standLocked(o, failed)
	default:
		t.standLocked(o, lacks)
	}
	ino, name := o.ino, o.name
	t.mu.Unlock()
	t.wakeAll(wake)
	if again {
		t.submit(o)
		return true
	}
	if err := t.hopeless(o, ino, name); err != nil {
		t.giveUp([]*op{o}, err)
		return true
	}
	if ino == 0 {
		t.appeared(name)
	}
	return true
}

// standLocked makes a transaction wait at the streams of a step.
func (t *tenure) standLocked(o *op, at int) {
	step := o.transaction().Steps[at]
	target := *stepTarget(step)
	o.path = pathAt(o.change, at)
	o.ino, o.name = gearsfs.Ino(target.Ino), nameKey{}
	if o.ino == 0 {
		o.name = nameKey{gearsfs.Ino(target.Dir), target.Name}
	}
	o.keys = o.keys[:0:0]
	for _, p := range placesOf(step) {
		o.keys = append(o.keys, p.key)
	}
	t.waits.join(o)
}

// tryTransactionLocked makes a transaction proposed that waits at a stream and
// seems to lack nothing. One that lacks something else goes to wait there.
func (t *tenure) tryTransactionLocked(o *op, at place) bool {
	lacks := t.lacksLocked(o)
	if lacks >= 0 && slices.Contains(placesOf(o.transaction().Steps[lacks]), at) {
		return false
	}
	t.waits.leave(o)
	if lacks >= 0 {
		t.standLocked(o, lacks)
		return false
	}
	t.proposeTransactionLocked(o)
	return true
}

// lacksLocked is the first step of a transaction that is seen to lack something;
// below 0 where none is.
func (t *tenure) lacksLocked(o *op) int {
	var l lacking
	steps := o.transaction().Steps
	return slices.IndexFunc(steps, func(step *wire.Step) bool {
		switch op := step.Op.(type) {
		case *wire.Step_Condition:
			return t.unmet(op.Condition)
		case *wire.Step_Take:
			_, ok := l.take(t, op.Take)
			return !ok && !t.mayEnd(op.Take)
		case *wire.Step_Put:
			return t.noRoom(op.Put, steps)
		}
		return false
	})
}

func (t *tenure) unmet(c *wire.Condition) bool {
	st := t.stateOf(gearsfs.Ino(c.Target.GetIno()), gearsfs.Key(c.Key))
	switch {
	case c.NewestSeq != nil && *c.NewestSeq != uint64(st.Newest()),
		c.Empty != nil && *c.Empty != (st.Left() == 0),
		c.HeadSeq != nil && (*c.HeadSeq == 0) != (st.Ready == 0):
		return true
	}
	return st.Ready < c.AtLeast
}

// lacking counts what the takes of a transaction get.
type lacking struct {
	at     []place
	counts []uint64
}

// take is the stream that a take is served from, where one has enough records
// that are promised to nobody.
func (l *lacking) take(t *tenure, take *wire.Take) (place, bool) {
	for _, key := range take.Keys {
		at := place{gearsfs.Ino(take.Target.GetIno()), gearsfs.Key(key)}
		st := t.stateOf(at.ino, at.key)
		need := uint64(take.Max)
		if s := t.waits.spot(at.ino, at.key); s != nil {
			need += s.takes.promised
		}
		i := slices.Index(l.at, at)
		if i >= 0 {
			need += l.counts[i]
		}
		if st.Ready < need {
			continue
		}
		if i < 0 {
			i = len(l.at)
			l.at, l.counts = append(l.at, at), append(l.counts, 0)
		}
		l.counts[i] += uint64(take.Max)
		return at, true
	}
	return place{}, false
}

// mayEnd says whether a take can't find its records any more: the state says
// what that means.
func (t *tenure) mayEnd(take *wire.Take) bool {
	return !slices.ContainsFunc(take.Keys, func(key string) bool {
		st := t.stateOf(gearsfs.Ino(take.Target.GetIno()), gearsfs.Key(key))
		return !st.Sealed || st.Left() >= uint64(take.Max)
	})
}

// noRoom says whether a put has no room, and no other step makes some.
func (t *tenure) noRoom(p *wire.Put, steps []*wire.Step) bool {
	at := place{gearsfs.Ino(p.Target.GetIno()), gearsfs.Key(p.Key)}
	st := t.stateOf(at.ino, at.key)
	if len(p.Records) == 0 || st.Sealed || st.Full != gearsfs.FullWait || st.Fits(sizeOf(p)) || t.addsNothing(at, p.Records) {
		return false
	}
	return !slices.ContainsFunc(steps, func(step *wire.Step) bool {
		switch op := step.Op.(type) {
		case *wire.Step_Take:
			return slices.Contains(placesOf(step), at)
		case *wire.Step_Settle:
			return slices.ContainsFunc(op.Settle.Receipts, func(r *wire.Receipt) bool {
				return place{gearsfs.Ino(r.Ino), gearsfs.Key(r.Key)} == at
			})
		case *wire.Step_Update:
			return place{gearsfs.Ino(op.Update.Target.GetIno()), gearsfs.Key(op.Update.Key)} == at
		}
		return false
	})
}

// hasTransaction says whether a transaction waits in the line.
func (l *line) hasTransaction() bool {
	for w := range l.All() {
		if w.Value.transaction() != nil {
			return true
		}
	}
	return false
}
