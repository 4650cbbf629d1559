package tests

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// A relay holds workers to account that pass records from one stream to the
// next, under leases with deadlines: each record that was put is acknowledged
// once, or is in a dead stream, or is left; and no two leases on it are valid at
// once.
type relay struct {
	file  gearsfs.File
	began time.Time

	mu     sync.Mutex
	put    []uint64 // by putter: records 0 to put-1 were acknowledged
	acked  map[item]int
	dead   map[item]int
	left   map[item]int
	grants map[relayed][]*grant
	fences map[uint64]relayed
	wrong  []error
}

// relayed is one record in one stream.
type relayed struct {
	key gearsfs.Key
	seq gearsfs.Seq
}

// A grant is a lease as its holder knows it. Times are of the clock that all
// workers share.
type grant struct {
	fence      uint64
	deliveries uint32
	asked, got time.Duration // between these it began
	until      time.Duration // until then it is valid, unless its holder ends it; 0 where that is not certain
	ending     time.Duration // when its holder asked to end it; 0 where it did not
	ended      bool          // its holder was told that it did
}

// Where records go: from the first stream to the second, and from there they are
// acknowledged.
const relayFrom, relayTo = gearsfs.Key("in"), gearsfs.Key("mid")

// relayTries is after how many deliveries a record is dead.
const relayTries = 3

func newRelay(path string, putters int) *relay {
	return &relay{
		file: gearsfs.At(path), began: time.Now(), put: make([]uint64, putters),
		acked: make(map[item]int), dead: make(map[item]int), left: make(map[item]int),
		grants: make(map[relayed][]*grant), fences: make(map[uint64]relayed),
	}
}

func (r *relay) now() time.Duration { return time.Since(r.began) }

func (r *relay) isWrong(format string, args ...any) {
	r.wrong = append(r.wrong, fmt.Errorf(format, args...))
}

// putOne puts the putter's next record.
func (r *relay) putOne(ctx context.Context, m dgm.Manager, putter uint32) error {
	r.mu.Lock()
	next := item{putter, r.put[putter]}
	r.mu.Unlock()
	_, err := m.Put(ctx, dgm.Put{File: r.file, Key: relayFrom, Records: []gearsfs.NewRecord{{Data: next.bytes(true)}}})
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.put[putter]++
	}
	return err
}

func (r *relay) String() string {
	hands := 0
	for _, grants := range r.grants {
		hands += len(grants)
	}
	return fmt.Sprintf("%d of the relay, leased %d times, %d of them dead, %d left", r.put[0], hands, len(r.dead), len(r.left))
}

// relayedItem is the item of a record; one that nobody has put where it is none.
func relayedItem(data []byte) item {
	if i, ok := itemOf(data); ok {
		return i
	}
	return item{putter: 1 << 31}
}

// A relayer is one of the workers.
type relayer struct {
	*relay
	m   dgm.Manager
	rng *rand.Rand
}

// step moves some records, or leases some and sees to them.
func (w *relayer) step(ctx context.Context) error {
	switch w.rng.IntN(10) {
	case 0:
		_, err := w.m.Move(ctx, w.file, relayFrom, relayTo, 1+w.rng.Uint64N(2))
		return err
	case 1:
		return w.moveHead(ctx)
	}
	key := relayFrom
	if w.rng.IntN(2) == 0 {
		key = relayTo
	}
	take := dgm.Take{
		File: w.file, Keys: []gearsfs.Key{key}, Max: 1 + w.rng.IntN(2), NoWait: true, Lease: true,
		LeaseFor: w.lasts(), ByReceipt: w.rng.IntN(3) > 0, Tries: relayTries,
	}
	asked := w.now()
	records, err := w.m.Take(ctx, take)
	if errors.Is(err, gearsfs.ErrEmpty) {
		return nil
	}
	if err != nil {
		return err
	}
	grants := w.granted(&take, asked, records)
	for i := range records {
		if err := w.seeTo(ctx, &records[i], grants[i]); err != nil {
			return err
		}
	}
	return nil
}

func (w *relayer) lasts() time.Duration {
	return time.Duration(200+w.rng.IntN(2000)) * time.Millisecond
}

// moveHead moves the head by a transaction that depends on what the head is.
func (w *relayer) moveHead(ctx context.Context) error {
	seen, err := w.m.Peek(ctx, dgm.Peek{File: w.file, Key: relayFrom, NoWait: true})
	if err != nil {
		if errors.Is(err, gearsfs.ErrEmpty) {
			err = nil
		}
		return err
	}
	head := seen[0].Place.Seq
	results, err := w.m.Transact(ctx, dgm.Transact{NoWait: true, Steps: []dgm.Step{
		{Condition: &dgm.Condition{File: w.file, Key: relayFrom, Head: &head}},
		{Take: &dgm.Take{File: w.file, Keys: []gearsfs.Key{relayFrom}, Max: 1}},
		{Put: &dgm.Put{File: w.file, Key: relayTo, Records: []gearsfs.NewRecord{{Data: seen[0].Data}}}},
	}})
	if errors.Is(err, gearsfs.ErrUnmet) || errors.Is(err, gearsfs.ErrEmpty) {
		return nil
	}
	if err == nil && results[1].Records[0].Place != seen[0].Place {
		err = fmt.Errorf("%v was taken where the head is %v", results[1].Records[0].Place, seen[0].Place)
	}
	return err
}

// granted notes what was leased.
func (r *relay) granted(take *dgm.Take, asked time.Duration, records []gearsfs.Record) []*grant {
	got := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	grants := make([]*grant, len(records))
	for i, rec := range records {
		g := &grant{fence: rec.Receipt.Fence, deliveries: rec.Deliveries, asked: asked, got: got}
		if take.ByReceipt { // else it ends with the session, too
			g.until = asked + certain(take.LeaseFor)
		}
		at := relayed{rec.Key, rec.Place.Seq}
		if other, twice := r.fences[g.fence]; twice {
			r.isWrong("fence %d is of %v and of %v", g.fence, other, at)
		}
		r.fences[g.fence] = at
		r.grants[at] = append(r.grants[at], g)
		grants[i] = g
	}
	return grants
}

// seeTo ends a lease in one of the ways in which it can end.
func (w *relayer) seeTo(ctx context.Context, rec *gearsfs.Record, g *grant) error {
	settle := dgm.Settle{Receipts: []gearsfs.Receipt{*rec.Receipt}}
	switch w.rng.IntN(20) {
	case 0, 1, 2, 3, 4:
		settle.Return = true
		settle.Delay = time.Duration(w.rng.IntN(2)*w.rng.IntN(200)) * time.Millisecond
		return w.end(ctx, rec, g, settle)
	case 5: // it runs out, or nearly
		pause(ctx, time.Duration(w.rng.Int64N(int64(3*time.Second))))
	case 6, 7:
		extend := settle
		extend.Extend = w.lasts()
		asked := w.now()
		err := w.m.Settle(ctx, extend)
		if w.lost(rec, g, err) {
			return nil
		}
		if err != nil {
			return err
		}
		if g.until != 0 {
			w.mu.Lock()
			g.until = asked + certain(extend.Extend)
			w.mu.Unlock()
		}
	}
	return w.end(ctx, rec, g, settle)
}

// lost reports whether a lease is over, which must not be too early.
func (r *relay) lost(rec *gearsfs.Record, g *grant, err error) bool {
	now := r.now()
	if !errors.Is(err, gearsfs.ErrGone) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if now < g.until {
		r.isWrong("the lease %d on %s %v was over at %v, and was to last until %v", g.fence, rec.Key, rec.Place, now, g.until)
	}
	return true
}

// end returns or acknowledges a record, and in the first stream passes it on.
func (w *relayer) end(ctx context.Context, rec *gearsfs.Record, g *grant, settle dgm.Settle) (err error) {
	w.mu.Lock()
	g.ending = w.now()
	w.mu.Unlock()
	passes := rec.Key == relayFrom && !settle.Return
	if passes {
		_, err = w.m.Transact(ctx, dgm.Transact{Steps: []dgm.Step{
			{Settle: &settle},
			{Put: &dgm.Put{File: w.file, Key: relayTo, Records: []gearsfs.NewRecord{{Data: rec.Data}}}},
		}})
	} else {
		err = w.m.Settle(ctx, settle)
	}
	if err != nil {
		if w.lost(rec, g, err) {
			return nil
		}
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	g.ended = true
	if !passes && !settle.Return {
		w.acked[relayedItem(rec.Data)]++
	}
	return nil
}

// drain takes what is left when all workers are done, and no lease holds it.
func (r *relay) drain(ctx context.Context, m dgm.Manager) error {
	for {
		infos, err := m.ListStreams(ctx, r.file, "", 100)
		if err != nil {
			return err
		}
		waiting := slices.ContainsFunc(infos, func(s gearsfs.StreamInfo) bool { return s.Leased+s.Delayed > 0 })
		for _, s := range infos {
			if err := r.drainStream(ctx, m, s.Key); err != nil {
				return err
			}
		}
		if !waiting {
			return nil
		}
		pause(ctx, 100*time.Millisecond)
	}
}

func (r *relay) drainStream(ctx context.Context, m dgm.Manager, key gearsfs.Key) error {
	to := r.left
	if strings.HasSuffix(string(key), ".dead") {
		to = r.dead
	}
	for {
		records, err := m.Take(ctx, dgm.Take{File: r.file, Keys: []gearsfs.Key{key}, Max: 1000, NoWait: true})
		if errors.Is(err, gearsfs.ErrEmpty) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, rec := range records {
			to[relayedItem(rec.Data)]++
		}
	}
}

// check returns what does not add up, when everything is drained.
func (r *relay) check() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	total := 0
	for putter, n := range r.put {
		for number := range n {
			i := item{uint32(putter), number}
			if acked, dead, left := r.acked[i], r.dead[i], r.left[i]; acked+dead+left != 1 {
				r.isWrong("%v was acknowledged %d times, is dead %d times and left %d times", i, acked, dead, left)
			}
		}
		total += int(n)
	}
	if known := len(r.acked) + len(r.dead) + len(r.left); known > total {
		r.isWrong("there are %d records that nobody put", known-total)
	}
	for at, grants := range r.grants {
		slices.SortFunc(grants, func(a, b *grant) int { return cmp.Compare(a.fence, b.fence) })
		for i, g := range grants {
			if g.deliveries > relayTries {
				r.isWrong("%v was delivered for the %dth time", at, g.deliveries)
			}
			for _, later := range grants[i+1:] {
				r.checkPair(at, g, later)
			}
		}
	}
	return errors.Join(r.wrong[:min(len(r.wrong), 20)]...)
}

// checkPair checks two leases on one record.
func (r *relay) checkPair(at relayed, g, later *grant) {
	until := g.until
	if g.ending != 0 {
		until = min(until, g.ending)
	}
	switch {
	case g.deliveries >= later.deliveries:
		r.isWrong("%v: the lease %d is delivery %d, the lease %d is %d", at, g.fence, g.deliveries, later.fence, later.deliveries)
	case later.asked > g.got && later.got < until:
		r.isWrong("%v: the lease %d was given between %v and %v, where %d was valid from %v to %v",
			at, later.fence, later.asked, later.got, g.fence, g.got, until)
	case g.ended && g.ending > later.got:
		r.isWrong("%v: the lease %d was ended behind the begin of %d", at, g.fence, later.fence)
	case later.got < g.asked:
		r.isWrong("%v: the lease %d was given before %d", at, later.fence, g.fence)
	}
}
