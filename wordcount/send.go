package wordcount

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// Options of a run.
type Options struct {
	// Top is how many of the most frequent words to find. 0 is none; else each
	// distinct word of up to WordBytesMax bytes costs memory here.
	Top int
	// Rule says what a word is; "" is InstalledRule.
	Rule Rule
	// LinesPerRecord bounds the lines in one record; 0 is as many as PieceBytes
	// hold, 1 is what GearsOS did.
	LinesPerRecord int
	// Progress is told how far the run is, one call at a time; it must not block.
	Progress func(Progress)
}

// Progress is how far a run is, in bytes of its input.
type Progress struct {
	Sent    uint64 // on the other node's disk
	Counted uint64 // acknowledged by its workers
}

// Result is what a run yields.
type Result struct {
	Counts
	Top []Frequency // the most frequent first, ties by bytes
}

// lookEvery is how often a sender to whom nothing is reported looks for its run.
const lookEvery = 10 * time.Second

// putsMax is how many batches are on their way at once.
const putsMax = 8

// Send counts in on node, through workers there, and returns when they are
// done: node is a RemoteDGM of the node that counts, own the sender's own node,
// and remote the name of the remote by which node reaches that. It waits for
// workers without end; ctx ends it with the context's error. The files of the
// run are removed in any case. A Read of in that blocks when Send fails or is
// cancelled is left behind.
//
// Where the workers can't count the run or node loses records, which no fault
// of theirs may cause, Send returns an error and no figures.
func Send(ctx context.Context, own, node dgm.Manager, remote string, in io.Reader, o Options) (Result, error) {
	if o.Rule == "" {
		o.Rule = InstalledRule(ctx)
	}
	s := &sender{own: own, node: node, o: o, classes: o.Rule.classes()}
	if s.classes == nil {
		return Result{}, gearsfs.ErrInvalid.Because("no rule is named %q", o.Rule)
	}
	result, err := s.run(ctx, remote, in)
	tidy, cancel := tidyContext(ctx)
	defer cancel()
	if err := errors.Join(err, s.remove(tidy)); err != nil {
		return Result{}, fmt.Errorf("wordcount: %w", err)
	}
	return result, nil
}

// A sender is node A in one run.
type sender struct {
	own, node dgm.Manager
	o         Options
	classes   *classes

	name             string
	ownDir, nodeDir  gearsfs.Ino
	ownFile, nodeRun gearsfs.File

	mu       sync.Mutex // guards what is below; held while Progress is called
	progress Progress
	records  gearsfs.Seq // put so far
}

// open makes the run's files on both nodes.
func (s *sender) open(ctx context.Context) error {
	s.name = rand.Text()
	for _, side := range []struct {
		m     dgm.Manager
		dir   *gearsfs.Ino
		file  *gearsfs.File
		key   gearsfs.Key
		bytes uint64
	}{
		{s.own, &s.ownDir, &s.ownFile, acksKey, acksBytesMax},
		{s.node, &s.nodeDir, &s.nodeRun, linesKey, linesBytesMax},
	} {
		dir, err := makeDir(ctx, side.m)
		if err != nil {
			return err
		}
		attr, err := side.m.Make(ctx, dir, s.name, dgm.Make{Mode: modeFile})
		if err != nil {
			return err
		}
		*side.dir, *side.file = dir, gearsfs.ByIno(attr.Ino)
		if err := side.m.Configure(ctx, *side.file, side.key, dgm.StreamChange{
			Limits: &gearsfs.Limits{Bytes: side.bytes},
		}); err != nil {
			return err
		}
	}
	return nil
}

// remove removes what open made, and the job.
func (s *sender) remove(ctx context.Context) error {
	var errs []error
	if s.ownDir != 0 {
		errs = append(errs, removeRun(ctx, s.own, s.ownDir, s.name))
	}
	if s.nodeDir != 0 {
		errs = append(errs, removeRun(ctx, s.node, s.nodeDir, s.name), sweepJobs(ctx, s.node))
	}
	return errors.Join(errs...)
}

func (s *sender) run(ctx context.Context, remote string, in io.Reader) (Result, error) {
	if err := s.open(ctx); err != nil {
		return Result{}, err
	}
	record, err := job{
		Run: s.name, Ino: s.nodeRun.Ino, Remote: remote, Back: s.ownFile.Ino,
		Rule: s.o.Rule, Words: s.o.Top > 0,
	}.record()
	if err != nil {
		return Result{}, err
	}
	if _, err := s.node.Put(ctx, dgm.Put{
		File: gearsfs.At(jobsPath), Key: gearsfs.DataKey, Records: []gearsfs.NewRecord{record}, Mode: 0o666,
	}); err != nil {
		return Result{}, err
	}

	ctx, cancel := context.WithCancelCause(ctx)
	var feeding sync.WaitGroup
	feeding.Go(func() {
		if err := s.feed(ctx, in); err != nil {
			cancel(err)
		}
	})
	t, err := s.collect(ctx)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx) // why the feeding ended, where it did
	}
	cancel(err)
	feeding.Wait()
	if err != nil {
		return Result{}, err
	}
	if !t.added.all(s.records) || t.total.Bytes != s.progress.Sent {
		return Result{}, gearsfs.ErrDamaged.Because("%d records of %d bytes were sent, but %d bytes counted",
			s.records, s.progress.Sent, t.total.Bytes)
	}
	return Result{Counts: t.total, Top: t.words.top(s.o.Top)}, nil
}

// feed puts the input and seals the stream behind it. Batches are put side by
// side, so they may overtake each other: each record says itself what stands in
// front of it.
func (s *sender) feed(ctx context.Context, in io.Reader) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	free, full := make(chan *batch, putsMax), make(chan *batch)
	for range putsMax {
		free <- new(batch)
	}
	go func() { // not waited for: a Read may block for ever
		if err := s.read(ctx, in, free, full); err != nil {
			cancel(fmt.Errorf("read the input: %w", err))
		}
	}()
	var puts sync.WaitGroup
	for range putsMax {
		puts.Go(func() {
			if err := s.put(ctx, full, free); err != nil {
				cancel(err)
			}
		})
	}
	puts.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	_, err := s.node.Put(ctx, dgm.Put{File: s.nodeRun, Key: linesKey, Seal: true})
	return err
}

// read fills batches until the end of the input, then closes full.
func (s *sender) read(ctx context.Context, in io.Reader, free <-chan *batch, full chan<- *batch) error {
	split := splitter{in: in, classes: s.classes, lines: s.o.LinesPerRecord}
	for {
		select {
		case <-ctx.Done():
			return nil
		case b := <-free:
			if err := split.next(b); err == io.EOF {
				close(full)
				return nil
			} else if err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case full <- b:
			}
		}
	}
}

// put puts batches until full is closed.
func (s *sender) put(ctx context.Context, full <-chan *batch, free chan<- *batch) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case b, ok := <-full:
			if !ok {
				return nil
			}
			_, err := s.node.Put(ctx, dgm.Put{File: s.nodeRun, Key: linesKey, Records: b.records})
			if err != nil {
				return err
			}
			s.mu.Lock()
			s.records += gearsfs.Seq(len(b.records))
			s.progress.Sent += uint64(b.filled)
			s.tellLocked()
			s.mu.Unlock()
			free <- b
		}
	}
}

func (s *sender) tellLocked() {
	if s.o.Progress != nil {
		p := s.progress
		p.Counted = min(p.Counted, p.Sent) // what is counted twice does not show
		s.o.Progress(p)
	}
}

// collect takes the workers' reports until the first result: then all lines are
// settled, and so each of their acknowledgements is in front of it.
func (s *sender) collect(ctx context.Context) (*tally, error) {
	t := &tally{}
	for {
		records, err := s.reports(ctx)
		if err != nil {
			return nil, err
		}
		for _, record := range records {
			r, err := unmarshalReport(record.Data)
			if err != nil {
				return nil, err
			}
			if r.Failure != "" {
				return nil, gearsfs.ErrProtocol.Because("the worker gave up: %s", r.Failure)
			}
			t.report(r)
			if record.Key == resultKey {
				t.finish()
				return t, t.agree(r.Total)
			}
			s.mu.Lock()
			if r.Work != nil {
				s.progress.Counted += r.Work.Counts.Bytes
			}
			s.tellLocked()
			s.mu.Unlock()
		}
	}
}

// reports waits for reports, looking now and then whether the node that counts
// still has the run.
func (s *sender) reports(ctx context.Context) ([]gearsfs.Record, error) {
	for {
		waiting, cancel := context.WithTimeout(ctx, lookEvery)
		records, err := s.own.Take(waiting, dgm.Take{
			File: s.ownFile, Keys: []gearsfs.Key{acksKey, resultKey}, Max: 32,
		})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return records, err
		}
		if _, err := s.node.GetAttr(ctx, s.nodeRun.Ino); err != nil {
			return nil, fmt.Errorf("the node that counts: %w", err)
		}
	}
}
