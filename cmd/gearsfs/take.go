package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/cmd/internal/units"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/spf13/cobra"
)

type takeOptions struct {
	node   string
	count  countFlag
	noWait bool
	wait   units.Duration
	follow bool
	force  bool
	lease  units.Duration
	exec   string
	tries  limitFlag
	format recordFormat
}

func (a *app) takeCommand() *cobra.Command {
	var o takeOptions
	c := &cobra.Command{
		Use:   "take FILE KEY[,KEY...]",
		Short: "Take records from a stream, waiting for them",
		Long: `Write the record at the head of a stream to standard output and remove it. Of several
keys the first, in that order, that has a record is taken from. Where there is none take
waits, also for a file or key that does not exist yet (its directory must).
A record is removed when it has been written: one that could not be goes back whole.
With --lease it is only lent: it goes back when DURATION is over, unless ack removes it.
With --exec COMMAND is run by sh for each record, which is its standard input: status 0
removes the record, any other returns it, later each time.`,
		Example: `  job=$(gearsfs take gears/jobs data)
  gearsfs take gears/jobs urgent,normal --wait 10s
  gearsfs take :/results data -f -o json
  gearsfs take gears/jobs data --lease 5m -o json
  gearsfs take gears/jobs data -f --exec 'convert - png:$GEARSFS_SEQ.png'`,
		Args: apart(exactly(2), "wait no-wait", "count follow", "lease exec", "exec "+formatsApart),
		RunE: func(c *cobra.Command, args []string) error {
			run := c.Flags().Changed("exec")
			switch {
			case run && o.exec == "":
				return usagef("--exec is empty")
			case o.lease.Given && (o.lease.Value <= 0 || !o.format.json.json):
				return usagef("--lease needs a time and -o json, which shows the receipt that ack asks for")
			case o.tries.set && !run && !o.lease.Given:
				return usagef("--tries is for --exec and --lease")
			case run:
				return a.takeExec(c.Context(), o, args)
			}
			return a.take(c.Context(), o, args)
		},
	}
	f := c.Flags()
	nodeFlag(f, &o.node)
	f.VarP(&o.count, "count", "n", "take this many, waiting for each, or all that are there now (default 1)")
	f.BoolVar(&o.noWait, "no-wait", false, "give up at once where there is no record (status 3)")
	f.Var(&o.wait, "wait", "give up after waiting this long for a record (status 3)")
	f.BoolVarP(&o.follow, "follow", "f", false, "go on until the stream is sealed and drained; with --no-wait until it is empty")
	f.Var(&o.lease, "lease", "lend the records for so long; ack, nack and extend are given their receipts (needs -o json)")
	f.StringVar(&o.exec, "exec", "", "have sh run `COMMAND` for each record")
	f.Var(&o.tries, "tries", "after so many failures a record goes to the stream KEY.dead (default of --exec: 5, or what set says)")
	f.BoolVar(&o.force, "force", false, "also take from a file that was written as blocks rather than put")
	o.format.flags(c)
	return c
}

func (a *app) take(ctx context.Context, o takeOptions, args []string) error {
	keys, err := parseKeys(args[1])
	if err != nil {
		return err
	}
	t, err := a.openWithin(ctx, o.wait, args[0], o.node)
	if err != nil {
		return err
	}
	l := &leaser{app: a, target: t, keys: keys, wait: o.wait, noWait: o.noWait, force: o.force, left: 1}
	if o.lease.Given {
		l.leaseFor, l.byReceipt, l.tries = o.lease.Value, true, o.tries.count()
	}
	switch {
	case o.follow:
		l.left, l.endless = 1, true
	case o.count.all:
		if l.left, err = ready(ctx, t, keys); err != nil {
			return err
		}
		l.noWait = true
	case o.count.set:
		l.left = o.count.value
	}
	err = l.takeAll(ctx, &sink{out: a.out, format: o.format})
	if l.taken == 0 {
		err = missing(ctx, t, keys, err)
	}
	switch {
	case drained(err) && (o.follow || o.count.all && l.taken > 0):
		return nil
	case err != nil:
		return fmt.Errorf("%s %s: %w", t.arg, args[1], err)
	}
	return nil
}

// missing says of ErrEmpty whether that is because the file or all of the
// streams are not there.
func missing(ctx context.Context, t target, keys []gearsfs.Key, err error) error {
	if !errors.Is(err, gearsfs.ErrEmpty) {
		return err
	}
	for _, k := range keys {
		info, failed := t.Stream(ctx, t.file(), k)
		switch {
		case errors.Is(failed, gearsfs.ErrNotFound):
			return gearsfs.ErrEmpty.Because("the stream is empty: there is no such file yet")
		case failed != nil || !absent(k, info):
			return err
		}
	}
	return gearsfs.ErrEmpty.Because("the stream is empty: there is none of that name yet (gearsfs streams shows those that there are)")
}

// absent reports whether the file has had no stream k so far.
func absent(k gearsfs.Key, info gearsfs.StreamInfo) bool {
	return k != gearsfs.DataKey && info.Version == 0 && info.Tail.Seq <= 1
}

// drained reports whether err says only that there is nothing left.
func drained(err error) bool {
	return errors.Is(err, gearsfs.ErrEnd) || errors.Is(err, gearsfs.ErrEmpty)
}

// ready counts the records that could be taken now; at least 1, so that a take
// says why there is none.
func ready(ctx context.Context, t target, keys []gearsfs.Key) (uint64, error) {
	var n uint64
	for _, k := range keys {
		info, err := t.Stream(ctx, t.file(), k)
		if err != nil && !errors.Is(err, gearsfs.ErrNotFound) {
			return 0, cause(ctx, err)
		}
		n += info.Records
	}
	return max(n, 1), nil
}

// takeBatchMax bounds how many records are leased at once: few enough that
// other takers get their share.
const takeBatchMax = 4096

// leaser takes records in three stages that overlap: the next batch is leased
// while one is written and the one before is acknowledged.
type leaser struct {
	*app
	target
	keys    []gearsfs.Key
	wait    units.Duration
	noWait  bool
	force   bool
	left    uint64 // to take; with endless always 1
	endless bool
	inVain  string // what did not happen when --wait is over; "" is the usual

	// What the leases are like; zero is bound to the session alone.
	leaseFor  time.Duration
	byReceipt bool // and they stay with whoever has the receipt
	tries     uint32

	taken  uint64 // written and acknowledged, or on the way to be
	looked bool   // the first look at the stream is behind us
}

// batch is what one lease brought, or the error that ended the leasing.
type batch struct {
	records []gearsfs.Record
	err     error
}

// takeAll takes what is left, writing it to s. Whatever it does not write it
// gives back before it returns.
func (l *leaser) takeAll(ctx context.Context, s *sink) (err error) {
	leasing, stop := context.WithCancel(ctx)
	batches := make(chan batch)
	acks := startAcks(ctx, l.Manager)
	go l.lease(leasing, batches)
	defer func() {
		stop()
		var unwritten []gearsfs.Record
		for b := range batches { // until lease has closed it
			unwritten = append(unwritten, b.records...)
		}
		failed := errors.Join(acks.finish(), l.giveBack(ctx, unwritten))
		switch {
		case failed == nil:
		case err == nil || drained(err):
			err = failed
		default:
			err = errors.Join(err, failed)
		}
	}()
	for b := range batches {
		if b.err != nil {
			return b.err
		}
		n, err := s.write(ctx, b.records)
		l.taken += uint64(n)
		if !l.byReceipt {
			acks.add(b.records[:n])
		}
		if err != nil {
			if failed := l.giveBack(ctx, b.records[n:]); failed != nil {
				err = errors.Join(err, failed)
			}
			return err
		}
		if acks.failed() != nil {
			return nil // finish returns it
		}
	}
	return nil
}

// lease sends batches until there is nothing left to take, an error, or the
// end of ctx, and then closes batches. All that it leased it has sent.
func (l *leaser) lease(ctx context.Context, batches chan<- batch) {
	defer close(batches)
	for l.left > 0 {
		records, err := l.leaseOne(ctx, min(l.left, takeBatchMax))
		batches <- batch{records, err}
		if err != nil || ctx.Err() != nil {
			return
		}
		if !l.endless {
			l.left -= uint64(len(records))
		}
	}
}

// leaseOne leases up to most records, waiting for the first of them.
func (l *leaser) leaseOne(ctx context.Context, most uint64) ([]gearsfs.Record, error) {
	take := dgm.Take{
		File: l.file(), Keys: l.keys, Max: int(most), Lease: true, Force: l.force,
		NoWait: l.noWait || !l.looked, LeaseFor: l.leaseFor, ByReceipt: l.byReceipt, Tries: l.tries,
	}
	if l.endless {
		take.Max = takeBatchMax
	}
	ask := func(ctx context.Context) ([]gearsfs.Record, error) { return l.Take(ctx, take) }
	waiting, cancel := waitContext(ctx, l.wait, cmp.Or(l.inVain, "nothing came"))
	defer cancel()
	records, err := waitFor(waiting, l.target, ask)
	if errors.Is(err, gearsfs.ErrEmpty) && !l.noWait && !l.looked {
		l.noteMissing(waiting, l.target, l.keys)
		take.NoWait = false
		records, err = waitFor(waiting, l.target, ask)
	}
	l.looked = true
	return records, cause(waiting, err)
}

// outcomePatience is how long an answer may still come when its wait is over.
const outcomePatience = 250 * time.Millisecond

// waitFor asks for records, and does not outstay ctx by the time that it would
// take to learn from a lost node what became of that: a lease that nobody
// hears of ends with the session, having changed nothing. Where it waited in
// vain it says which existing key may have been meant.
func waitFor(ctx context.Context, t target, ask func(ctx context.Context) ([]gearsfs.Record, error)) ([]gearsfs.Record, error) {
	asking, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	answered := make(chan batch, 1)
	go func() { // ends at the latest when the session is closed
		records, err := ask(asking)
		answered <- batch{records, err}
	}()
	select {
	case b := <-answered:
		return b.records, b.err
	case <-ctx.Done():
	}
	over := ctx.Err()
	if w, ok := errors.AsType[*waitError](context.Cause(ctx)); ok {
		over = &waitError{w.what, hint(ctx, t)}
	}
	cancel()
	select {
	case b := <-answered:
		if b.err != nil && (errors.Is(b.err, context.Canceled) || errors.Is(b.err, gearsfs.ErrMaybe)) {
			return nil, over
		}
		return b.records, b.err
	case <-time.After(outcomePatience):
		return nil, over
	}
}

// hint says which existing keys what this session waits for may be a
// misspelling of, where the node answers soon.
func hint(ctx context.Context, t target) string {
	asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), outcomePatience)
	defer cancel()
	waits, err := t.Waits(asking)
	if err != nil {
		return ""
	}
	for _, w := range waits {
		if w.Session == t.Session() && len(w.Near) > 0 {
			return fmt.Sprintf("is the key %s meant?", keyList(w.Near))
		}
	}
	return ""
}

// giveBack returns records that were leased and not written.
func (l *leaser) giveBack(ctx context.Context, records []gearsfs.Record) error {
	if len(records) == 0 {
		return nil
	}
	ctx, cancel := lingering(ctx)
	defer cancel()
	err := l.Settle(ctx, dgm.Settle{Receipts: receipts(records), Return: true})
	if errors.Is(err, gearsfs.ErrGone) {
		return nil // cleared meanwhile: there is nothing to go back
	}
	if err != nil {
		return fmt.Errorf("give back %d records (they go back by themselves when the session ends): %w", len(records), err)
	}
	return nil
}

func receipts(records []gearsfs.Record) []gearsfs.Receipt {
	out := make([]gearsfs.Receipt, len(records))
	for i, r := range records {
		out[i] = *r.Receipt
	}
	return out
}

// noteMissing says on standard error what a take or peek that is about to wait
// waits for, where that does not exist yet.
func (a *app) noteMissing(ctx context.Context, t target, keys []gearsfs.Key) {
	if _, err := t.Resolve(ctx, t.path, true); errors.Is(err, gearsfs.ErrNotFound) {
		a.notef("note: there is no file %s yet: waiting for it", t.arg)
		return
	}
	for _, k := range keys {
		info, err := t.Stream(ctx, t.file(), k)
		if err != nil || !absent(k, info) {
			continue
		}
		a.notef("note: %s has no stream %q yet: waiting for it (gearsfs streams shows those that it has)", t.arg, k)
	}
}

// acks acknowledges batches of records, in order, in a goroutine of its own.
type acks struct {
	queue chan []gearsfs.Receipt
	ended chan struct{}

	mu  sync.Mutex
	err error
}

// acksAhead is how many batches may be written and not yet acknowledged.
const acksAhead = 2

// startAcks begins; finish must be called. What was handed to add is
// acknowledged also when ctx has ended, within settleTimeout.
func startAcks(ctx context.Context, m dgm.Manager) *acks {
	k := &acks{queue: make(chan []gearsfs.Receipt, acksAhead), ended: make(chan struct{})}
	go func() {
		defer close(k.ended)
		settling, cancel := lingering(ctx)
		defer cancel()
		for r := range k.queue {
			if err := acknowledge(settling, m, r); err != nil {
				k.mu.Lock()
				k.err = errors.Join(k.err, err)
				k.mu.Unlock()
			}
		}
	}()
	return k
}

// lingering returns a context that ends settleTimeout after ctx does.
func lingering(ctx context.Context) (context.Context, context.CancelFunc) {
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(settleTimeout, cancel) })
	return late, func() { stop(); cancel() }
}

// add hands records over to be acknowledged, waiting where too many batches are.
func (k *acks) add(records []gearsfs.Record) {
	if len(records) > 0 {
		k.queue <- receipts(records)
	}
}

func (k *acks) failed() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err
}

// finish waits until all is acknowledged.
func (k *acks) finish() error {
	close(k.queue)
	<-k.ended
	return k.failed()
}

// acknowledge settles leases for good. Where some of them are gone, because the
// stream was cleared or the session was given up, the others are settled all
// the same.
func acknowledge(ctx context.Context, m dgm.Manager, r []gearsfs.Receipt) error {
	err := m.Settle(ctx, dgm.Settle{Receipts: r})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, gearsfs.ErrGone) && len(r) > 1:
		half := len(r) / 2
		return errors.Join(acknowledge(ctx, m, r[:half]), acknowledge(ctx, m, r[half:]))
	}
	return fmt.Errorf("acknowledge %d records that were written: %w", len(r), err)
}
