// Package load calls something from many clients at once and measures it. What
// is compared is measured by it alike, in whatever process that runs.
package load

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// RecordBytes is the size of a record where a Work says no other.
const RecordBytes = 128

// Work is one thing to measure.
type Work struct {
	// Do is one of Put, Take, Lease, Chain, Both and Wake.
	Do string `json:"do"`
	// Clients have a connection and a call in flight each.
	Clients int `json:"clients"`
	// Batch is how many records travel in one round trip; with Single set as
	// that many calls at once, which may have different outcomes, else in one
	// that happens whole or not at all.
	Batch  int  `json:"batch"`
	Single bool `json:"single"`
	// Time is how long it is measured.
	Time time.Duration `json:"time"`
	// Bytes is the size of a record; 0 is RecordBytes.
	Bytes int `json:"bytes"`
	// Records is how many are there before takes are measured; 0 is a number
	// that most systems do not use up.
	Records int `json:"records"`
	// Pace is the time between two puts of a Wake; with 0 they follow each other.
	Pace time.Duration `json:"pace"`
}

// What can be done. Each is over when it is on the disks of a majority.
const (
	Put   = "put"
	Take  = "take"  // for good, in one step where a system has one
	Lease = "lease" // and then acknowledge, in two round trips
	Chain = "chain" // acknowledge and lease the next in one round trip
	Both  = "both"  // half the clients put, the others take; the takes count
	Wake  = "wake"  // from the start of a put until a waiting client has the record
)

// Payload returns what is put: a record.
func (w Work) Payload() []byte { return make([]byte, w.bytes()) }

func (w Work) bytes() int {
	if w.Bytes == 0 {
		return RecordBytes
	}
	return w.Bytes
}

// takes tells whether records are taken that were put before.
func (w Work) takes() bool { return w.Do == Take || w.Do == Lease || w.Do == Chain }

// Stock is how many records are there before takes are measured. Where they
// are used up the measuring ends.
func (w Work) Stock() int {
	if w.Records > 0 {
		return w.Records / w.Batch * w.Batch
	}
	perSecond := 5_000 * min(w.Clients, 16)
	if w.Batch > 1 {
		perSecond = 100_000
	}
	return int(w.Time.Seconds()*float64(perSecond)) / w.Batch * w.Batch
}

// Figures is what was measured.
type Figures struct {
	PerSecond float64 `json:"per_second"` // records
	// Microseconds of a call, however many records it carries.
	P50 float64 `json:"p50_us"`
	P99 float64 `json:"p99_us"`
	Max float64 `json:"max_us"`
}

// ErrEmpty ends a Run in peace: there is nothing left to do.
var ErrEmpty = errors.New("nothing is left")

// Run has each client call op, one call after the other, for a time d, and for
// a time warm before it in which nothing is counted. op returns how many records
// it has dealt with. The first error of an op, but ErrEmpty, is Run's.
func Run(ctx context.Context, clients int, warm, d time.Duration, op func(ctx context.Context, client int) (records int, err error)) (Figures, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	begin := time.Now().Add(warm)
	end := begin.Add(d)
	var records atomic.Int64
	took := make([][]time.Duration, clients)
	var last atomic.Int64 // when the last call ended, after begin
	var wait sync.WaitGroup
	for client := range clients {
		wait.Go(func() {
			for {
				start := time.Now()
				if start.After(end) || ctx.Err() != nil {
					return
				}
				n, err := op(ctx, client)
				switch {
				case errors.Is(err, ErrEmpty):
					return
				case err != nil:
					cancel(err)
					return
				case start.Before(begin):
					continue
				}
				records.Add(int64(n))
				now := time.Now()
				took[client] = append(took[client], now.Sub(start))
				for since := int64(now.Sub(begin)); ; {
					old := last.Load()
					if since <= old || last.CompareAndSwap(old, since) {
						break
					}
				}
			}
		})
	}
	wait.Wait()
	if err := context.Cause(ctx); err != nil {
		return Figures{}, err
	}
	all := slices.Concat(took...)
	if len(all) == 0 {
		return Figures{}, errors.New("nothing was measured: all was done before the measuring began")
	}
	f := Spread(all)
	f.PerSecond = float64(records.Load()) / time.Duration(last.Load()).Seconds()
	return f, nil
}

// Spread returns the percentiles of at least one duration, which it sorts.
func Spread(took []time.Duration) Figures {
	slices.Sort(took)
	us := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
	return Figures{
		P50: us(took[len(took)/2]),
		P99: us(took[len(took)*99/100]),
		Max: us(took[len(took)-1]),
	}
}

// Sample calls op, which measures itself, over and over for a time.
func Sample(ctx context.Context, d time.Duration, op func(ctx context.Context) (time.Duration, error)) (Figures, error) {
	var took []time.Duration
	for end := time.Now().Add(d); len(took) == 0 || time.Now().Before(end); {
		one, err := op(ctx)
		if err != nil {
			return Figures{}, err
		}
		took = append(took, one)
	}
	return Spread(took), nil
}

// Failover has put called over and over, has the leader killed meanwhile, and
// returns how long after that a put was acknowledged that began after it. put
// is given a minute.
func Failover(ctx context.Context, put func(ctx context.Context) error, kill func() error) (time.Duration, error) {
	for began, left := time.Now(), 100; left > 0; {
		err := put(ctx)
		if err == nil {
			left--
		} else if time.Since(began) > time.Minute {
			return 0, fmt.Errorf("before the kill: %w", err)
		}
	}
	var at time.Time
	var failed error
	killed := make(chan struct{})
	time.AfterFunc(20*time.Millisecond, func() {
		failed = kill()
		at = time.Now()
		close(killed)
	})
	for began := time.Now(); time.Since(began) < time.Minute; {
		start := time.Now()
		acknowledged := put(ctx) == nil
		select {
		case <-killed:
			if failed != nil {
				return 0, fmt.Errorf("kill the leader: %w", failed)
			}
			if acknowledged && start.After(at) {
				return time.Since(at), nil
			}
		default:
		}
	}
	<-killed
	return 0, errors.New("no put is acknowledged a minute after the kill")
}
