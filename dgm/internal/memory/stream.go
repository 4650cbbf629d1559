package memory

import (
	"cmp"
	"container/heap"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/stream"
)

// queue is one stream whose records are in memory.
type queue struct {
	*stream.Queue
	at    Place
	dues  dues
	armed uint64 // when a timer looks at it; 0 for none
	ids   putIDs
	began gearsfs.Seq // of its first record
}

// due is the end of a lease or of a delay. Those that ended before, or were
// given another time, are passed over when they come up.
type due struct {
	time   uint64
	record gearsfs.Place
}

// dues is a heap of them, the earliest first.
type dues []due

var _ heap.Interface = (*dues)(nil)

func (d dues) Len() int           { return len(d) }
func (d dues) Less(i, j int) bool { return d[i].time < d[j].time }
func (d dues) Swap(i, j int)      { d[i], d[j] = d[j], d[i] }
func (d *dues) Push(x any)        { *d = append(*d, x.(due)) }

func (d *dues) Pop() any {
	last := len(*d) - 1
	due := (*d)[last]
	*d = (*d)[:last]
	return due
}

// rows are the rows of a stream in memory; they note what is due when.
type rows struct {
	stream.Memory
	s *queue
}

var _ stream.Records = (*rows)(nil)

// AddOut implements stream.Outs.
func (r *rows) AddOut(at gearsfs.Place, out stream.Out) { r.SetOut(at, stream.Out{}, out) }

// SetOut implements stream.Outs.
func (r *rows) SetOut(at gearsfs.Place, was, out stream.Out) {
	r.Memory.SetOut(at, was, out)
	if out.Deadline != 0 && out.Deadline != was.Deadline {
		heap.Push(&r.s.dues, due{out.Deadline, at})
		r.s.tidyDues()
	}
}

// newQueue returns a stream that begins at a time: no former process gave
// its seqs, if that put fewer than a million records a second.
func newQueue(at Place, now, version uint64) *queue {
	s := &queue{at: at, began: gearsfs.Seq(max(now/uint64(time.Microsecond), 1))}
	state := stream.NewState()
	state.NextSeq, state.Head.Seq, state.Version, state.LostBefore = s.began, s.began, version, s.began-1
	q, err := stream.NewQueue(state, &rows{s: s}, stream.NewPool(windowBytes))
	if err != nil {
		panic(err) // an empty queue reads nothing
	}
	s.Queue = q
	return s
}

const windowBytes = 1 << 20

// newest is the seq of the last record that was put, 0 where none was.
func (s *queue) newest() gearsfs.Seq {
	if s.State().NextSeq == s.began {
		return 0
	}
	return s.State().Newest()
}

// tidyDues drops the dues that are over where they are most of all.
func (s *queue) tidyDues() {
	live := int(s.State().Leased + s.State().Delayed)
	if len(s.dues) < 64+4*live {
		return
	}
	s.dues = nil
	for record, out := range s.EachOut() {
		if out.Deadline != 0 {
			s.dues = append(s.dues, due{out.Deadline, record})
		}
	}
	heap.Init(&s.dues)
}

// over returns a record whose lease or delay is over; ok is false where there is
// none.
func (s *queue) over(now uint64) (record gearsfs.Place, out stream.Out, ok bool) {
	for {
		if len(s.dues) == 0 || s.dues[0].time > now {
			return record, out, false
		}
		due := heap.Pop(&s.dues).(due)
		if out, ok = s.Out(due.record); ok && out.Deadline == due.time {
			return due.record, out, true
		}
	}
}

// next is when something is due; 0 where nothing is.
func (s *queue) next() uint64 {
	var next uint64
	sooner := func(at uint64) {
		if next == 0 || at < next {
			next = at
		}
	}
	if len(s.dues) > 0 {
		sooner(s.dues[0].time)
	}
	if state := s.State(); state.Age != 0 && state.Ready > 0 {
		front, err := s.Front()
		if err != nil {
			panic(err) // rows in memory are read without errors
		}
		sooner(front + state.Age)
	}
	if len(s.ids.order) > 0 {
		sooner(s.ids.order[0].time + s.idWindow())
	}
	return next
}

func (s *queue) idWindow() uint64 {
	return cmp.Or(s.State().IDWindow, uint64(gearsfs.IDWindowDefault))
}

// armLocked has a stream looked at when something of it is due.
func (m *Machine) armLocked(s *queue) {
	next := s.next()
	if next == 0 || s.armed != 0 && s.armed <= next {
		return
	}
	s.armed = next
	now := m.node.Now()
	after := time.Duration(min(next-min(next, now), uint64(1<<62)))
	time.AfterFunc(after, func() {
		m.Push(func() {
			m.mu.Lock()
			if m.streams[s.at] == s {
				if s.armed == next {
					s.armed = 0
				}
				m.dueLocked(s)
				m.armLocked(s)
			}
			m.mu.Unlock()
			m.Wake()
		})
	})
}

// dueLocked ends leases and delays whose time has come, discards what is too old
// and forgets ids.
func (m *Machine) dueLocked(s *queue) {
	now := m.node.Now()
	for record, out, ok := s.over(now); ok; record, out, ok = s.over(now) {
		if out.Leased {
			m.comeBackLocked(s, record, 0, 0)
		} else {
			s.Due(record)
		}
		m.touchLocked(s.at)
	}
	if age := s.State().Age; age != 0 && age < now {
		n, err := s.DiscardOlder(now-age, gearsfs.BatchRecordsMax)
		if err != nil {
			panic(err) // rows in memory are read without errors
		}
		if n > 0 {
			m.touchLocked(s.at)
		}
	}
	s.ids.forget(now, s.idWindow())
	s.Clean()
}

// putIDs are the ids that a stream in memory remembers: within the same window
// as those of the others.
type putIDs struct {
	last  map[string]putID
	order []putID // oldest first; one that was put again is there twice
}

type putID struct {
	id        string
	seq, time uint64
}

// known returns the seq under which an id was put within the window.
func (ids *putIDs) known(id string, now, window uint64) (seq uint64, ok bool) {
	last, ok := ids.last[id]
	return last.seq, ok && now-last.time < window
}

func (ids *putIDs) remember(id string, seq, now uint64) {
	if ids.last == nil {
		ids.last = make(map[string]putID)
	}
	entry := putID{id, seq, now}
	ids.last[id] = entry
	ids.order = append(ids.order, entry)
}

// forget forgets what has left the window.
func (ids *putIDs) forget(now, window uint64) {
	for len(ids.order) > 0 {
		first := ids.order[0]
		if len(ids.order) <= gearsfs.IDsMax && now-first.time < window {
			return
		}
		if ids.last[first.id] == first {
			delete(ids.last, first.id)
		}
		ids.order[0] = putID{}
		ids.order = ids.order[1:]
	}
	ids.order = nil
}
