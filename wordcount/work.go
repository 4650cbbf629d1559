package wordcount

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// WorkOptions of a worker.
type WorkOptions struct {
	// Parallel is how many batches of one run to count at once; 0 is one for
	// each processor.
	Parallel int
	// Patience is how long a sender may be unreachable before its run is given
	// up and removed; 0 is 30 s.
	Patience time.Duration
	// Done is told of each run that this worker took part in when it ends
	// here, what this worker counted of it and, where it was given up, why. It
	// may be called by several goroutines at once.
	Done func(run string, counted Counts, err error)
}

const (
	patienceDefault = 30 * time.Second
	retryEveryMax   = time.Second
	runsMax         = 16 // runs that one worker takes part in at once
)

// Work counts for whoever sends to node, until ctx ends; it then returns nil
// and what it had leased is counted by others. It reaches senders through the
// remotes of node. Any number of workers share the runs of a node.
func Work(ctx context.Context, node dgm.Manager, o WorkOptions) error {
	if o.Parallel <= 0 {
		o.Parallel = runtime.GOMAXPROCS(0)
	}
	if o.Patience <= 0 {
		o.Patience = patienceDefault
	}
	err := (&worker{node: node, o: o, slots: make(chan struct{}, runsMax)}).follow(ctx)
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("wordcount: %w", err)
	}
	return nil
}

type worker struct {
	node  dgm.Manager
	o     WorkOptions
	dir   gearsfs.Ino
	slots chan struct{} // a token for each run taken part in
}

// follow takes part in each run that is in the jobs queue or comes into it.
func (w *worker) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var runs sync.WaitGroup
	defer runs.Wait()
	defer cancel()
	var err error
	if w.dir, err = makeDir(ctx, w.node); err != nil {
		return err
	}
	var after gearsfs.Seq
	for {
		records, err := w.node.Peek(ctx, dgm.Peek{
			File: gearsfs.At(jobsPath), Key: gearsfs.DataKey, Max: 64, Follow: true, After: after,
		})
		if gone(err) { // the queue itself was removed: the next one begins anew
			after = 0
			if w.dir, err = makeDir(ctx, w.node); err == nil {
				continue
			}
		}
		if err != nil {
			return err
		}
		for _, record := range records {
			after = record.Place.Seq
			j, err := parseJob(record)
			if err != nil {
				continue // sweepJobs removes it
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case w.slots <- struct{}{}:
			}
			runs.Go(func() {
				w.takePart(ctx, j)
				<-w.slots
			})
		}
		if err := sweepJobs(ctx, w.node); err != nil {
			return err
		}
	}
}

// takePart counts in one run until it is over.
func (w *worker) takePart(ctx context.Context, j job) {
	p := &part{worker: w, job: j, classes: j.Rule.classes()}
	err := p.run(ctx)
	if ctx.Err() != nil || gone(err) && p.total.Bytes == 0 {
		return
	}
	if errors.Is(err, errOutOfReach) {
		tidy, cancel := tidyContext(ctx)
		defer cancel()
		err = errors.Join(err, removeRun(tidy, w.node, w.dir, j.Run), sweepJobs(tidy, w.node))
	}
	if w.o.Done != nil {
		if gone(err) {
			err = nil
		}
		w.o.Done(j.Run, p.total, err)
	}
}

// A part is a worker's part in one run.
type part struct {
	*worker
	job     job
	own     dgm.Manager // the sender's node
	classes *classes

	mu      sync.Mutex // guards what is below
	settled []workID   // not reported yet
	total   Counts     // settled by this worker
}

// run counts until the run is over, and puts the result where it is drained.
// An error that is gone says that the sender ended the run.
func (p *part) run(ctx context.Context) error {
	if _, err := p.node.GetAttr(ctx, p.job.Ino); err != nil {
		return err
	}
	if err := p.reach(ctx, func(ctx context.Context) error {
		own, err := dgm.Via(ctx, p.node, p.job.Remote)
		if err == nil {
			p.own = own
		}
		return err
	}); err != nil {
		return err
	}
	return errors.Join(p.count(ctx), p.own.Close())
}

func (p *part) count(ctx context.Context) error {
	if p.classes == nil {
		return p.report(ctx, resultKey, &report{Failure: fmt.Sprintf("it knows no rule named %q", p.job.Rule)})
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var counters sync.WaitGroup
	for range p.o.Parallel {
		counters.Go(func() {
			if err := p.countBatches(ctx); err != nil {
				cancel(err)
			}
		})
	}
	counters.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return p.report(ctx, resultKey, &report{Total: p.total})
}

const (
	leaseBytes    = 1 << 20 // what one take is meant to bring
	leaseRecords0 = 64      // until it is known how long the lines are
	workBytesMax  = 4 << 20 // so that an acknowledgement with words is a record
)

// countBatches leases, counts, acknowledges and settles until the stream is
// drained.
func (p *part) countBatches(ctx context.Context) error {
	words := &wordMap{}
	records0 := leaseRecords0
	for {
		records, err := p.lease(ctx, records0)
		if errors.Is(err, gearsfs.ErrEnd) {
			return nil
		}
		if err != nil {
			return err
		}
		bytes := 1
		for _, r := range records {
			bytes += len(r.Data)
		}
		records0 = min(max(leaseBytes*len(records)/bytes, 1), 4*records0, gearsfs.BatchRecordsMax)
		for len(records) > 0 {
			n := prefix(records, workBytesMax)
			if err := p.countBatch(ctx, records[:n], words); err != nil {
				return errors.Join(err, p.giveBack(ctx, records))
			}
			records = records[n:]
		}
	}
}

// prefix returns how many records from the front have at most bytesMax bytes,
// at least 1.
func prefix(records []gearsfs.Record, bytesMax int) int {
	bytes := 0
	for i, r := range records {
		bytes += len(r.Data)
		if i > 0 && bytes > bytesMax {
			return i
		}
	}
	return len(records)
}

// lease waits for lines, looking now and then whether the sender still lives.
func (p *part) lease(ctx context.Context, n int) ([]gearsfs.Record, error) {
	for {
		waiting, cancel := context.WithTimeout(ctx, p.o.Patience)
		records, err := p.node.Take(waiting, dgm.Take{
			File: gearsfs.ByIno(p.job.Ino), Keys: []gearsfs.Key{linesKey}, Max: n, Lease: true,
		})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return records, err
		}
		if err := p.reach(ctx, func(ctx context.Context) error {
			_, err := p.own.GetAttr(ctx, p.job.Back)
			return err
		}); err != nil {
			return nil, err
		}
	}
}

// countBatch counts leased records, acknowledges them to the sender and then
// settles them: in this order, so that no line is ever counted by nobody.
func (p *part) countBatch(ctx context.Context, records []gearsfs.Record, words *wordMap) error {
	w, err := p.acknowledge(ctx, records, words)
	if err != nil {
		return err
	}
	err = p.node.Settle(ctx, dgm.Settle{Receipts: receiptsOf(records)})
	if errors.Is(err, gearsfs.ErrGone) || errors.Is(err, gearsfs.ErrMaybe) {
		return nil // others count it again, or not: the sender finds out
	}
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.settled = append(p.settled, w.ID)
	p.total = p.total.Add(w.Counts)
	p.mu.Unlock()
	return nil
}

// acknowledge counts leased records and tells the sender. It overwrites words.
func (p *part) acknowledge(ctx context.Context, records []gearsfs.Record, words *wordMap) (*work, error) {
	w := &work{ID: workID{records[0].Receipt.Fence, records[0].Place.Seq}}
	words.clear()
	for _, r := range records {
		at, known := placeOf(r.Type)
		if !known {
			failure := fmt.Sprintf("record %d of the lines is a %q", r.Place.Seq, r.Type)
			return nil, errors.Join(gearsfs.ErrProtocol.Because("%s", failure),
				p.report(ctx, resultKey, &report{Failure: failure}))
		}
		w.Counts = w.Counts.Add(p.classes.count(r.Data, at))
		if p.job.Words {
			p.classes.countWords(words, r.Data, at)
		}
		if n := len(w.Spans); n > 0 && w.Spans[n-1].Last+1 == r.Place.Seq {
			w.Spans[n-1].Last++
		} else {
			w.Spans = append(w.Spans, span{r.Place.Seq, r.Place.Seq})
		}
	}
	w.Words = words.all
	return w, p.report(ctx, acksKey, &report{Work: w})
}

func receiptsOf(records []gearsfs.Record) []gearsfs.Receipt {
	receipts := make([]gearsfs.Receipt, len(records))
	for i, r := range records {
		receipts[i] = *r.Receipt
	}
	return receipts
}

// giveBack returns leased records, also where ctx has ended. Where it fails the
// leases end with the session.
func (p *part) giveBack(ctx context.Context, records []gearsfs.Record) error {
	tidy, cancel := tidyContext(ctx)
	defer cancel()
	return p.node.Settle(tidy, dgm.Settle{Receipts: receiptsOf(records), Return: true})
}

// report puts r, with what was settled meanwhile, to the sender's own node. A
// report that arrives twice does no harm there.
func (p *part) report(ctx context.Context, key gearsfs.Key, r *report) error {
	p.mu.Lock()
	r.Settled, p.settled = p.settled, nil
	p.mu.Unlock()
	data := r.marshal()
	return p.reach(ctx, func(ctx context.Context) error {
		_, err := p.own.Put(ctx, dgm.Put{
			File: gearsfs.ByIno(p.job.Back), Key: key, Records: []gearsfs.NewRecord{{Data: data, Type: string(key)}},
		})
		return err
	})
}

// errOutOfReach ends a run whose sender is lost.
var errOutOfReach = errors.New("the sender is out of reach")

// reach asks the sender until it answers, for as long as patience lasts.
func (p *part) reach(ctx context.Context, ask func(context.Context) error) error {
	trying, cancel := context.WithTimeout(ctx, p.o.Patience)
	defer cancel()
	for wait := retryEveryMax / 64; ; wait = min(2*wait, retryEveryMax) {
		err := ask(trying)
		if err == nil || gone(err) {
			return err
		}
		retry := time.NewTimer(wait)
		select {
		case <-trying.Done():
			retry.Stop()
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("%w: %w", errOutOfReach, err)
		case <-retry.C:
		}
	}
}
