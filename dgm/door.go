package dgm

import "sync/atomic"

// door counts those who are inside, until it is shut. The zero door is open.
type door struct{ inside atomic.Int64 }

// shutDoor is added when a door is shut: below 0 nobody enters.
const shutDoor = -1 << 62

// enter lets the caller in, who then must leave; not where it is shut.
func (d *door) enter() bool { return d.enterAs(1) }

// enterAs is enter for several at once, each of whom then must leave.
func (d *door) enterAs(several int) bool {
	for {
		n := d.inside.Load()
		if n < 0 {
			return false
		}
		if d.inside.CompareAndSwap(n, n+int64(several)) {
			return true
		}
	}
}

// leave reports whether the caller was the last one inside a door that is shut.
func (d *door) leave() bool { return d.inside.Add(-1) == shutDoor }

// shut lets nobody in any more, and reports whether nobody is inside: else the
// last one to leave is told. It is called once.
func (d *door) shut() bool { return d.inside.Add(shutDoor) == shutDoor }
