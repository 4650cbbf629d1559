package transport

import (
	"time"

	"github.com/gearsfs/gearsfs/gears"
)

// slowFrameBytes is how much of a frame must come within IdleTimeout. A frame
// that never becomes whole, its length being damaged, is found by that.
const slowFrameBytes = 1 << 20

// keepAlive is the goroutine that finds out that the peer is gone. It counts
// ticks instead of reading a clock: a silence of IdleTimeout is found when one
// more tick could pass it.
func (c *Conn) keepAlive() {
	ticker := time.NewTicker(c.cfg.PingInterval)
	defer ticker.Stop()
	silentMax := int(c.cfg.IdleTimeout/c.cfg.PingInterval) - 1
	silent, stuck := 0, 0
	var frames uint64
	for {
		select {
		case <-c.quit:
			return
		case <-ticker.C:
		}
		heard, moved := c.heard.Swap(false), c.moved.Swap(false)
		if heard || moved {
			silent = 0
		} else {
			silent++
		}
		if n := c.frames.Load(); n != frames || c.expect.Load() == 0 {
			frames, stuck = n, 0
		} else {
			stuck++
		}
		switch {
		case silent >= silentMax:
			c.fail(gears.ErrNoNode.Because("nothing heard from the peer for %v", c.cfg.IdleTimeout), false)
		case stuck >= silentMax*(1+int(c.expect.Load()/slowFrameBytes)):
			c.fail(gears.ErrProtocol.Because("a frame of %d bytes does not end", c.expect.Load()), false)
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
