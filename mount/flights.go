package mount

import (
	"context"
	"slices"
	"sync"

	"github.com/gearsfs/gearsfs/dgm"
)

// flight is what was held of a file, on its way.
type flight struct {
	file  *heldFile
	id    uint64 // in the journal
	runs  runs
	set   *dgm.SetAttr // behind them
	once  dgm.Once
	after []*flight
	done  chan struct{}
}

// overlaps says whether two flights must go one after the other.
func (f *flight) overlaps(g *flight) bool {
	return f.set != nil || g.set != nil || f.runs.overlap(g.runs)
}

// launchLocked sends what is held of a file on its way.
func (s *shared) launchLocked(e *heldFile) {
	if f := s.departLocked(e); f != nil {
		s.flyLocked(f)
	}
}

// departLocked makes a flight of what is held of a file, nil where nothing is.
func (s *shared) departLocked(e *heldFile) *flight {
	if !e.holdsAny() {
		return nil
	}
	f := &flight{file: e, id: e.id, runs: e.runs, set: e.set, done: make(chan struct{})}
	e.runs, e.set = nil, nil
	s.boardLocked(f)
	return f
}

// boardLocked puts a flight behind those that it must not overtake.
func (s *shared) boardLocked(f *flight) {
	e := f.file
	for _, older := range e.flights {
		if f.overlaps(older) {
			f.after = append(f.after, older)
		}
	}
	e.flights = append(e.flights, f)
	if s.keeper != nil {
		f.once.Record = s.keeper.recordFlight(f.id)
	}
}

func (s *shared) flyLocked(f *flight) {
	select {
	case s.runways <- f:
	default:
		s.flights.Go(func() { s.flyOn(f) }) // each ends with the Manager's answer, or s.life
	}
}

// runwaysMax is how many goroutines wait for a flight. A new one first has to grow its
// stack, which is a twentieth of what a small file costs.
const runwaysMax = 2

// flyOn sends a flight, and those that come behind it.
func (s *shared) flyOn(f *flight) {
	for {
		s.fly(f)
		if s.idle.Add(1) > runwaysMax {
			s.idle.Add(-1)
			return
		}
		select {
		case f = <-s.runways:
			s.idle.Add(-1)
		case <-s.life.Done():
			return
		}
	}
}

// fly sends a flight and takes the answer.
func (s *shared) fly(f *flight) {
	for _, older := range f.after {
		<-older.done
	}
	f.after = nil
	e := f.file
	err := s.send(f)
	if err != nil {
		s.heldFailed(e.ino, err)
	}
	s.landed(f, err)
	h := &s.held
	h.mu.Lock()
	defer h.mu.Unlock()
	e.flights = slices.DeleteFunc(e.flights, func(other *flight) bool { return other == f })
	h.bytes -= f.runs.bytes()
	if err != nil {
		e.trusted = false // and it may be that somebody still has the bytes
	} else {
		f.runs.forget()
	}
	h.leaveLocked(e)
	close(f.done)
}

// send makes the changes of a flight: one after the other where they are numbered, or
// where one does not wait for other nodes.
func (s *shared) send(f *flight) error {
	ctx, ino := dgm.WithOnce(s.life, &f.once), f.file.ino
	if len(f.runs) == 1 && f.set != nil {
		attr, err := s.m.Save(ctx, ino, f.runs[0].pos, f.runs[0].data, *f.set)
		if err == nil {
			s.inodes.wrote(&attr)
		}
		return err
	}
	if len(f.runs) > 1 && s.keeper == nil {
		if err := s.sendAtOnce(ctx, f); err != nil {
			return err
		}
	} else {
		for _, r := range f.runs {
			attr, err := s.m.Write(ctx, ino, r.pos, r.data)
			if err != nil {
				return err
			}
			s.inodes.wrote(&attr)
		}
	}
	if f.set == nil {
		return nil
	}
	_, err := s.m.SetAttr(ctx, ino, *f.set)
	return err
}

// sendAtOnce sends the runs of a flight, as many at once as there may be flights.
func (s *shared) sendAtOnce(ctx context.Context, f *flight) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var sending sync.WaitGroup
	next := make(chan run)
	for range min(flightsMax, len(f.runs)) {
		sending.Go(func() {
			for r := range next {
				attr, err := s.m.Write(ctx, f.file.ino, r.pos, r.data)
				if err != nil {
					cancel(err)
					continue
				}
				s.inodes.wrote(&attr)
			}
		})
	}
	for _, r := range f.runs {
		next <- r
	}
	close(next)
	sending.Wait()
	return context.Cause(ctx)
}
