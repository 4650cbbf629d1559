package dgm

import (
	"sync"
	"time"

	"github.com/gearsfs/gearsfs/wire"
)

// ticks let an entry come when the state machine has something due: it does
// that by the time of entries. A timer runs until the first thing is due, and no
// longer than there is one: nothing is looked for in vain.
//
// look is called when what is due first may have changed: after each entry, and
// when a tenure begins.
type ticks struct {
	due     func() (time uint64, ok bool)      // the state machine's
	now     func() uint64                      // log time
	after   func(time.Duration, func()) func() // runs a function later, unless it is stopped
	propose func(done func())                  // puts a tick into the log; done when it was there

	// mu is taken before the state machine's lock.
	mu     sync.Mutex
	at     uint64 // when the timer runs out, 0 where none runs
	stop   func() // the timer
	onWay  bool   // a tick is in the log
	closed bool
}

// tickPause is the least time between what is due and the tick for it, so that
// what is due at about the same time is done by one.
const tickPause = time.Millisecond

func (t *tenure) initTicks() {
	t.ticks.due = t.vol.machine.NextDue
	t.ticks.now = t.vol.group.Time
	t.ticks.after = func(d time.Duration, f func()) func() {
		timer := time.AfterFunc(d, f)
		return func() { timer.Stop() }
	}
	t.ticks.propose = func(done func()) {
		t.order(nil, &wire.Command{Checked: true, Op: &wire.Command_Tick{Tick: &wire.Tick{}}},
			func(*wire.Answer, error) { done() })
	}
}

// look sees to it that a tick comes when the first thing is due.
func (k *ticks) look() {
	k.mu.Lock()
	defer k.mu.Unlock()
	due, ok := k.due()
	switch {
	case k.closed, k.onWay, ok && k.at == due:
		return // what is on its way will look
	case k.stop != nil:
		k.stop()
	}
	k.at, k.stop = 0, nil
	if !ok {
		return
	}
	wait := tickPause
	if now := k.now(); due > now {
		wait = max(wait, time.Duration(due-now))
	}
	k.at = due
	k.stop = k.after(wait, func() { k.ring(due) })
}

// ring proposes a tick where what the timer was for has not been done.
func (k *ticks) ring(at uint64) {
	k.mu.Lock()
	if k.closed || k.onWay || k.at != at {
		k.mu.Unlock()
		return
	}
	k.at, k.stop = 0, nil
	due, ok := k.due()
	now := ok && due <= k.now()
	k.onWay = now
	k.mu.Unlock()
	if !now {
		k.look()
		return
	}
	k.propose(func() {
		k.mu.Lock()
		k.onWay = false
		k.mu.Unlock()
		k.look()
	})
}

// close lets no tick come any more.
func (k *ticks) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	if k.stop != nil {
		k.stop()
	}
}
