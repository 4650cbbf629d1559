package dgm

import (
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/wire"
)

// A lock that can't be had waits in the line of its file, holding nothing but what
// its owner has already, until others' locks there end. The oldest goes first: a
// younger one whose locks it would mind waits behind it. That holds for owners
// that have no lock at all. One that has may be who the older waits for, maybe by
// way of others, so it waits for nobody who has nothing; and it may find that who it waits for
// waits for it: then nothing would ever end that but an error.
//
// No wake-up is lost: the state is read, and a lock joins the line, with tenure.mu
// held; who ends one after that has to take it to wake.

// startLock sends a lock to the log, or lets it wait behind others.
func (t *tenure) startLock(o *op, lock *wire.Lock) canceller {
	if lock.Kind > lockWrite {
		o.fail(gearsfs.ErrInvalid)
		return nil
	}
	o.ino = gearsfs.Ino(lock.Ino)
	o.keys = []gearsfs.Key{} // it may wait
	t.mu.Lock()
	behind := lock.Kind != lockNone && !o.noWait() && !o.change.Retry && t.behindLocked(o) && t.mayWaitLocked(o)
	if behind {
		t.waits.join(o)
	} else {
		o.state = opProposed
	}
	t.mu.Unlock()
	if behind {
		t.wakeLocks(o.ino)
	} else {
		t.submit(o)
	}
	return o
}

// behindLocked reports whether a new lock has to wait for older ones in its file's
// line, which may wait for no more than it does.
func (t *tenure) behindLocked(o *op) bool {
	l := t.waits.locks[o.ino]
	if l == nil {
		return false
	}
	older := false
	l.each(func(w *op) { older = older || o.mindsLock(w) })
	if !older {
		return false
	}
	_, holds := t.vol.machine.LockedBy(o.sess.id, o.lock())
	return !holds
}

func (o *op) mindsLock(w *op) bool { return file.Minds(o.sess.id, o.lock(), w.sess.id, w.lock()) }

// wakeLocks proposes those that wait in a file's line and can be had now, and ends
// those that never could.
func (t *tenure) wakeLocks(ino gearsfs.Ino) {
	t.mu.Lock()
	l := t.waits.locks[ino]
	if l == nil || t.over != nil {
		t.mu.Unlock()
		return
	}
	var line, older, run, dead []*op
	l.each(func(o *op) { line = append(line, o) })
	for _, o := range slices.Backward(line) { // the youngest has closed a circle
		holders, holds := t.vol.machine.LockedBy(o.sess.id, o.lock())
		if len(holders) > 0 && holds && t.deadlockedLocked(o, holders) {
			t.waits.leave(o)
			o.state = opDone
			dead = append(dead, o)
		}
	}
	for _, o := range line {
		if o.state == opDone {
			continue
		}
		holders, holds := t.vol.machine.LockedBy(o.sess.id, o.lock())
		if len(holders) == 0 && (holds || !slices.ContainsFunc(older, o.mindsLock)) {
			t.waits.leave(o)
			o.state = opProposed
			run = append(run, o)
		}
		older = append(older, o)
	}
	t.mu.Unlock()
	t.submit(run...)
	for _, o := range dead {
		o.failCertain(gearsfs.ErrDeadlock)
	}
}

// lockFailed ends a lock that can't be had and does not wait, or not any more.
func (o *op) lockFailed(answer *wire.Answer) {
	if ended := o.endedBy(); ended != nil {
		o.fail(ended)
	} else {
		o.done(&wire.Response{Answer: answer})
	}
	o.ten.wakeLocks(o.ino) // who waited behind it
}

// deadlockedLocked reports whether one of those who keep a lock of fcntl from being
// had waits, maybe by way of others, for its owner. An owner with several threads
// may wait and go on all the same: that is not seen, as in other systems.
func (t *tenure) deadlockedLocked(o *op, holders []file.Waiter) bool {
	me := waiterOf(o)
	if me.Flock {
		return false
	}
	waiting := make(map[file.Waiter][]*op)
	for _, l := range t.waits.locks {
		l.each(func(w *op) { waiting[waiterOf(w)] = append(waiting[waiterOf(w)], w) })
	}
	seen := make(map[file.Waiter]bool)
	for len(holders) > 0 {
		by := holders[0]
		holders = holders[1:]
		if by == me {
			return true
		}
		if seen[by] {
			continue
		}
		seen[by] = true
		for _, w := range waiting[by] {
			next, _ := t.vol.machine.LockedBy(w.sess.id, w.lock())
			holders = append(holders, next...)
		}
	}
	return false
}

func waiterOf(o *op) file.Waiter {
	return file.Waiter{Session: o.sess.id, Owner: o.lock().Owner, Flock: o.lock().Flock}
}
