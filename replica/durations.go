package replica

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Durations are how many of what a Group measures took how long, since it was
// started.
type Durations struct {
	// Counts[i] are those of at most 16 µs << i that no count before has; the last
	// are all that took longer.
	Counts [durationBounds + 1]uint64
	Sum    time.Duration
}

// The bounds are durationMin, and twice the one before, up to 8.4 s.
const (
	durationBounds = 20
	durationMin    = 16 * time.Microsecond
)

// Cumulative returns how many took at most each bound, in seconds, and how many
// there are: what a histogram of Prometheus is made of.
func (d *Durations) Cumulative() (upto map[float64]uint64, n uint64) {
	upto = make(map[float64]uint64, durationBounds)
	for i := range durationBounds {
		n += d.Counts[i]
		upto[(durationMin << i).Seconds()] = n
	}
	return upto, n + d.Counts[durationBounds]
}

// durations counts Durations. It may be used by several goroutines.
type durations struct {
	counts [durationBounds + 1]atomic.Uint64
	sum    atomic.Int64
}

func (d *durations) add(took time.Duration) {
	took = max(took, 0)
	i := bits.Len64(uint64(max(took-1, 0) / durationMin)) // of the first bound that is not below it
	d.counts[min(i, durationBounds)].Add(1)
	d.sum.Add(int64(took))
}

// get returns what was counted; what is added meanwhile may be in a part of it.
func (d *durations) get() Durations {
	out := Durations{Sum: time.Duration(d.sum.Load())}
	for i := range d.counts {
		out.Counts[i] = d.counts[i].Load()
	}
	return out
}
