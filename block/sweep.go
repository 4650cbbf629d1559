package block

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/gearsfs/gearsfs"
)

// SweepOptions say how Sweep works.
type SweepOptions struct {
	Rate     int64          // bytes freed in a second; 0 is no bound
	Age      time.Duration  // how long nothing was written to segments that are swept; 0 is SettledAge, less than 0 none
	Progress func(Progress) // called after each segment, on Sweep's goroutine; may be nil
	// Skip says which segments are left alone; nil is none. It is asked after live
	// has returned, so live can find it out.
	Skip func(origin gearsfs.MemberID, segment uint64) bool
}

// SweepReport is what Sweep did.
type SweepReport struct {
	Segments int   // that were looked at
	Busy     int   // that were left alone, since they were written to lately
	Freed    int64 // bytes that nothing referred to
	Removed  int   // segments of which nothing is left
}

// Sweep frees the pages that none of the extents of live covers, in segments
// to which nothing was written for opts.Age before live was called. It is there
// for what a crash or a lost answer left behind: what is known to be of no use
// goes by Free. An error of live, and an extent of its that Check refuses, ends
// it with nothing freed.
func (s *Store) Sweep(ctx context.Context, live Live, opts SweepOptions) (SweepReport, error) {
	var report SweepReport
	if opts.Age == 0 {
		opts.Age = SettledAge
	}
	files, err := s.survey()
	if err != nil {
		return report, err
	}
	covered := map[segmentID]*pageSet{}
	settled := files[:0]
	for _, f := range files {
		if !s.settled(f.id, f.info, opts.Age) {
			report.Busy++
			continue
		}
		settled = append(settled, f)
		covered[f.id] = new(pageSet)
	}
	progress := Progress{}
	err = live(func(e gearsfs.Extent) error {
		if e.Origin == 0 {
			return ctx.Err()
		}
		if err := e.Check(); err != nil {
			return err
		}
		progress.Extents++
		if set := covered[idOf(e)]; set != nil {
			for page := e.At / pageBytes; page < e.At/pageBytes+e.Pages(); page++ {
				set.add(page)
			}
		}
		return ctx.Err()
	})
	if err != nil {
		return report, err
	}
	w := &sweeper{store: s, ctx: ctx, pace: newPace(opts.Rate), age: opts.Age, report: &report}
	for _, f := range settled {
		if opts.Skip != nil && opts.Skip(f.id.origin, f.id.number) {
			report.Busy++
			continue
		}
		if err := w.segment(f, covered[f.id]); err != nil {
			return report, err
		}
		if opts.Progress != nil {
			progress.Segments, progress.Bytes = report.Segments, uint64(report.Freed)
			opts.Progress(progress)
		}
	}
	s.forgetWritten(opts.Age)
	return report, nil
}

// forgetWritten drops what settled no longer asks for.
func (s *Store) forgetWritten(age time.Duration) {
	now := s.now()
	s.dirtyMu.Lock()
	defer s.dirtyMu.Unlock()
	for id, at := range s.written {
		if now.Sub(at) >= max(age, SettledAge) {
			delete(s.written, id)
		}
	}
}

type sweeper struct {
	store  *Store
	ctx    context.Context
	pace   *pace
	age    time.Duration
	report *SweepReport
}

// segment sweeps one segment, unless it is used meanwhile: then later.
func (w *sweeper) segment(f segmentFile, covered *pageSet) error {
	s := w.store
	if err := s.enter(); err != nil {
		return err
	}
	defer s.running.RUnlock()
	seg, err := s.table.get(f.id, openOnly)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer s.table.release(seg)
	spans, err := s.uncoveredSpans(seg, f.info.Size, covered)
	if err != nil {
		return err
	}
	w.report.Segments++
	for _, p := range spans {
		for p.at < p.end {
			n := min(p.end-p.at, freeStep)
			if err := w.wait(n); err != nil {
				return err
			}
			if done, err := w.punch(seg, &f, p.at, n); err != nil || !done {
				return err
			}
			p.at += n
		}
	}
	if s.table.newestOf(f.id.origin) == f.id.number {
		return nil
	}
	if err := s.removeEmpty(seg); err != nil {
		return err
	}
	seg.life.RLock()
	defer seg.life.RUnlock()
	if seg.removed {
		w.report.Removed++
	}
	return nil
}

// wait waits until n bytes may be freed, but not longer than the store is open.
func (w *sweeper) wait(n uint64) error {
	ctx, stop := context.WithCancel(w.ctx)
	defer stop()
	defer context.AfterFunc(w.store.closing, stop)()
	err := w.pace.wait(ctx, int64(n))
	if err != nil && w.ctx.Err() == nil {
		return gearsfs.ErrClosed
	}
	return err
}

// punch frees pages of the segment, unless it changed since the sweep began but
// by this. Nothing is written to it meanwhile. The file's time may be too
// coarse to tell, so this process is asked as well.
func (w *sweeper) punch(seg *segment, f *segmentFile, at, n uint64) (done bool, err error) {
	s := w.store
	seg.life.Lock()
	defer seg.life.Unlock()
	info, err := s.table.fs.Stat(seg.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if seg.removed || !info.Changed.Equal(f.info.Changed) || !s.settled(f.id, FileInfo{}, w.age) {
		w.report.Busy++
		return false, nil
	}
	if err := s.punch(seg, at, n); err != nil {
		return false, err
	}
	w.report.Freed += int64(n)
	f.info, err = s.table.fs.Stat(seg.path)
	return err == nil, err
}
