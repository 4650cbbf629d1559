package replica

import (
	"time"
)

// A Group can be stepped: prepare opens it without a goroutine, and then it
// only moves when it is told to, on the caller's goroutine and in an order that
// depends on nothing else.
//
//   - turn does all that is ready and returns idle, or stopped after beginClose
//     or a failure: then finish ends the Group, and outcome is what Close
//     would have returned. Turn is called through guard.
//   - disk.sync syncs what was written and answers those who waited for it;
//     until then the loop has written, but not synced.
//   - Time passes, ticks included, when the world says so: its timers fire, and
//     the next turn sees it.
//   - Messages leave through Config.Peers and come in by Receive, as ever.
//
// Raft draws its election timeouts from crypto/rand.Reader, each time anew; who
// wants to know them puts a reader of its own there.
// stepped in step_test.go is such a world.

// world is where a Group has threads and time from.
type world interface {
	// timer calls f on a goroutine of its own whenever the timer that it
	// returns, and that does not run yet, is due.
	timer(f func()) timer
	// after yields once, that much later.
	after(d time.Duration) <-chan time.Time
	// spawn runs f beside the Group; it ends by itself.
	spawn(f func())
	// elapsed is the time since some moment; unlike a clock it never jumps.
	elapsed() time.Duration
}

// timer is the part of time.Timer that is needed.
type timer interface {
	Reset(d time.Duration) bool
	Stop() bool
}

// earth is the world of all Groups but those of a simulation. Its clock jumps,
// but the readings of time.Now know how much time is between them.
type earth struct {
	clock func() time.Time
	began time.Time
}

var _ world = earth{}

func newEarth(clock func() time.Time) earth { return earth{clock: clock, began: clock()} }

func (e earth) timer(f func()) timer {
	t := time.AfterFunc(time.Hour, f)
	t.Stop()
	return t
}

func (e earth) after(d time.Duration) <-chan time.Time { return time.After(d) }
func (e earth) spawn(f func())                         { go f() }
func (e earth) elapsed() time.Duration                 { return e.clock().Sub(e.began) }
