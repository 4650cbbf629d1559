package persist

import (
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// compactions says when a Pebble may compact: as many at once as it asks for,
// but none before it is open. One that is opened may begin at once, and where
// the rest of the opening fails, Pebble 2.1.7 closes the tables under the
// compaction, which panics. Pebble's own scheduler also looks around ten times a
// second for what may begin; here that is found when a compaction ends, or is
// asked for.
//
// Invariant: where a compaction waits that was refused, one runs whose Done lets
// it begin, or open has not been called.
type compactions struct {
	mu       sync.Mutex // Pebble's locks come before it
	granted  sync.Cond  // granting has become false
	db       pebble.DBForCompaction
	open     bool
	closed   bool
	granting bool // Pebble is being called
	running  int
}

var (
	_ pebble.CompactionScheduler   = (*compactions)(nil)
	_ pebble.CompactionGrantHandle = (*compactions)(nil)
)

func newCompactions() *compactions {
	c := &compactions{}
	c.granted.L = &c.mu
	return c
}

// Register implements pebble.CompactionScheduler.
func (c *compactions) Register(_ int, db pebble.DBForCompaction) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.db = db
}

// opened says that Pebble is open; the caller holds none of its locks.
func (c *compactions) opened() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = true
	c.grantLocked()
}

// Unregister implements pebble.CompactionScheduler.
func (c *compactions) Unregister() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for c.granting {
		c.granted.Wait()
	}
}

// roomLocked reports whether one more may run.
func (c *compactions) roomLocked() bool {
	return c.open && !c.closed && c.running < max(1, c.db.GetAllowedWithoutPermission())
}

// TrySchedule implements pebble.CompactionScheduler.
func (c *compactions) TrySchedule() (bool, pebble.CompactionGrantHandle) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.roomLocked() {
		return false, nil
	}
	c.running++
	return true, c
}

// Done implements pebble.CompactionGrantHandle.
func (c *compactions) Done() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running--
	c.grantLocked()
}

// grantLocked lets those begin that wait. It lets go of the lock while it calls
// Pebble, which may begin one by TrySchedule meanwhile: then there is one too many
// for a time.
func (c *compactions) grantLocked() {
	for c.granting {
		c.granted.Wait()
	}
	for c.roomLocked() {
		c.granting = true
		c.mu.Unlock()
		began := c.db.Schedule(c)
		c.mu.Lock()
		c.granting = false
		c.granted.Broadcast()
		if !began {
			return
		}
		c.running++
	}
}

// UpdateGetAllowedWithoutPermission implements pebble.CompactionScheduler. Pebble
// asks for what has become possible by itself.
func (*compactions) UpdateGetAllowedWithoutPermission() {}

// Started implements pebble.CompactionGrantHandle.
func (*compactions) Started() {}

// MeasureCPU implements pebble.CompactionGrantHandle.
func (*compactions) MeasureCPU(pebble.CompactionGoroutineKind) {}

// CumulativeStats implements pebble.CompactionGrantHandle.
func (*compactions) CumulativeStats(pebble.CompactionGrantHandleStats) {}
