package block

import (
	"context"
	"sync"
	"time"
)

// paceAhead is how much work may be done at once after a while without any.
const paceAhead = 100 * time.Millisecond

// pace bounds how many bytes are worked on in a second. It is safe for
// concurrent use.
type pace struct {
	rate int64 // bytes a second; 0 is no bound

	mu   sync.Mutex // guards next
	next time.Time  // when the next work is due
}

func newPace(rate int64) *pace { return &pace{rate: rate} }

// wait waits until n bytes may be worked on, or ctx ends and returns its error.
func (p *pace) wait(ctx context.Context, n int64) error {
	if p.rate <= 0 {
		return ctx.Err()
	}
	p.mu.Lock()
	now := time.Now()
	if earliest := now.Add(-paceAhead); p.next.Before(earliest) {
		p.next = earliest
	}
	due := p.next
	p.next = due.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	p.mu.Unlock()
	if !due.After(now) {
		return ctx.Err()
	}
	timer := time.NewTimer(due.Sub(now))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
