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
	once  dgm.Once     // sets, or saves all
	sends []dgm.Once   // of each run
	after []*flight
	done  chan struct{}
}

func newFlight(e *heldFile, id uint64, runs runs, set *dgm.SetAttr) *flight {
	return &flight{file: e, id: id, runs: runs, set: set, sends: make([]dgm.Once, len(runs)), done: make(chan struct{})}
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
	f := newFlight(e, e.id, e.runs, e.set)
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
	if s.keeper == nil {
		return
	}
	f.once.Record = s.keeper.recordFlight(flightUnique(f.id))
	for i := range f.sends {
		f.sends[i].Record = s.keeper.recordFlight(runUnique(f.id, i))
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

// send makes the changes of a flight: the runs, and then the attributes.
func (s *shared) send(f *flight) error {
	ctx, ino := dgm.WithOnce(s.life, &f.once), f.file.ino
	if len(f.runs) == 1 && f.set != nil {
		attr, err := s.m.Save(ctx, ino, f.runs[0].pos, f.runs[0].data, *f.set)
		if err == nil {
			s.inodes.wrote(&attr)
		}
		return err
	}
	if err := s.sendRuns(f); err != nil || f.set == nil {
		return err
	}
	_, err := s.m.SetAttr(ctx, ino, *f.set)
	return err
}

// runsAtOnce is how many runs of a flight are on their way at once.
const runsAtOnce = 128

// sendRuns sends the runs of a flight, several at once.
func (s *shared) sendRuns(f *flight) error {
	if len(f.runs) == 1 {
		return s.sendRun(s.life, f, 0)
	}
	ctx, cancel := context.WithCancelCause(s.life)
	defer cancel(nil)
	var sending sync.WaitGroup
	next := make(chan int)
	for range min(runsAtOnce, len(f.runs)) {
		sending.Go(func() {
			for i := range next {
				if err := s.sendRun(ctx, f, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i := range f.runs {
		next <- i
	}
	close(next)
	sending.Wait()
	return context.Cause(ctx)
}

func (s *shared) sendRun(ctx context.Context, f *flight, i int) error {
	attr, err := s.m.Write(dgm.WithOnce(ctx, &f.sends[i]), f.file.ino, f.runs[i].pos, f.runs[i].data)
	if err == nil {
		s.inodes.wrote(&attr)
	}
	return err
}
