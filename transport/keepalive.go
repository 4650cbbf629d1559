package transport

import (
	"time"

	"github.com/gearsfs/gearsfs"
)

// slowFrameBytes is how much of a frame that is under way must come within
// IdleTimeout. By that a frame is found that never becomes whole because its
// length was damaged: the little that comes is no sign of life then.
const slowFrameBytes = 32 << 10

// keepAlive is the goroutine that finds out that the peer is gone. It counts
// ticks instead of reading a clock: a silence of IdleTimeout is found when one
// more tick could pass it.
func (c *Conn) keepAlive() {
	ticker := time.NewTicker(c.cfg.PingInterval)
	defer ticker.Stop()
	ticksMax := int(c.cfg.IdleTimeout/c.cfg.PingInterval) - 1
	silent, stuck, unacknowledged := 0, 0, 0
	var received, frames, mark uint64 // received when stuck was 0
	for {
		select {
		case <-c.quit:
			return
		case <-ticker.C:
		}
		r, f, moved := c.received.Load(), c.frames.Load(), c.moved.Swap(false)
		before := unacknowledged
		unacknowledged = c.unacknowledged()
		if silent++; r != received || moved || unacknowledged < before {
			silent = 0
		}
		if stuck++; f != frames || !c.midFrame.Load() || r-mark >= slowFrameBytes {
			stuck, mark = 0, r
		}
		received, frames = r, f
		switch {
		case silent >= ticksMax:
			c.fail(gearsfs.ErrNoNode.Because("nothing heard from the peer for %v", c.cfg.IdleTimeout), false)
		case stuck >= ticksMax:
			c.fail(gearsfs.ErrProtocol.Because("a frame does not end"), true)
		case silent > 0:
			c.ping()
		}
	}
}

// ping asks the peer for a sign of life, behind all that is queued.
func (c *Conn) ping() {
	c.mu.Lock()
	if c.err == nil && !c.shut && len(c.queue) == 0 {
		c.queue = append(c.queue, frame{kind: kindPing})
	}
	own := c.claimLocked()
	c.mu.Unlock()
	if own {
		c.handOver()
	}
}
