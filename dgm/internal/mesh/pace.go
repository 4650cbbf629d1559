package mesh

import (
	"context"
	"sync"
	"time"
)

// paceBurst is how much time's worth of bytes may go at once.
const paceBurst = 20 * time.Millisecond

// pace keeps what several do together below a number of bytes per second.
type pace struct {
	mu        sync.Mutex
	perSecond float64
	free      time.Time // when all that was let through is paid for
}

func newPace(bytesPerSecond uint64) *pace { return &pace{perSecond: float64(bytesPerSecond)} }

// wait returns when n more bytes may go. They count also where ctx ends first.
func (p *pace) wait(ctx context.Context, n int) error {
	now := time.Now()
	p.mu.Lock()
	if least := now.Add(-paceBurst); p.free.Before(least) {
		p.free = least
	}
	p.free = p.free.Add(time.Duration(float64(n) / p.perSecond * float64(time.Second)))
	delay := p.free.Sub(now)
	p.mu.Unlock()
	if delay <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
