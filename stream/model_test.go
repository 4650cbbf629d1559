package stream

import (
	"bytes"
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

// modelRecord is a record of the plain model.
type modelRecord struct {
	at         gearsfs.Place
	data       []byte
	block      bool
	holder     gearsfs.SessionID
	fence      uint64 // 0 is ready or delayed
	until      uint64 // of a lease or a delay
	out        bool   // in front of the cursor
	time       uint64
	deliveries uint32
}

func (r *modelRecord) ready() bool   { return r.fence == 0 && r.until == 0 }
func (r *modelRecord) delayed() bool { return r.fence == 0 && r.until != 0 }

// modelled is a Queue beside a plain list of what lives in it.
type modelled struct {
	t    testing.TB
	rand *rand.Rand
	q    *Queue
	rows *Memory
	list []*modelRecord // by place
	s    State          // of which only what has no other source is kept
	next uint64         // fence
	now  uint64
	gone map[gearsfs.Seq]gearsfs.Fate // of those that were not acknowledged
}

func (m *modelled) data() []byte {
	n := m.rand.IntN(40)
	switch m.rand.IntN(20) {
	case 0:
		n = 0
	case 1:
		n = 30 << 10
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(m.rand.Uint32())
	}
	return b
}

func (m *modelled) pick(ok func(*modelRecord) bool) *modelRecord {
	var fit []*modelRecord
	for _, r := range m.list {
		if ok(r) {
			fit = append(fit, r)
		}
	}
	if len(fit) == 0 {
		return nil
	}
	return fit[m.rand.IntN(len(fit))]
}

func (m *modelled) remove(gone func(*modelRecord) bool) {
	m.list = slices.DeleteFunc(m.list, gone)
}

func (m *modelled) lose(gone func(*modelRecord) bool, fate gearsfs.Fate) {
	for _, r := range m.list {
		if gone(r) {
			m.gone[r.at.Seq] = fate
		}
	}
}

// checkFates compares what the queue says of those that are gone: it may not know.
func (m *modelled) checkFates() {
	s := m.q.State()
	require.LessOrEqual(m.t, len(s.Lost), lostRunsMax)
	info := gearsfs.StreamInfo{Lost: s.Lost, LostBefore: s.LostBefore}
	live := make(map[gearsfs.Seq]bool)
	for _, r := range m.list {
		live[r.at.Seq] = true
	}
	var all [gearsfs.Fates]uint64
	for seq := gearsfs.Seq(1); seq < s.NextSeq; seq++ {
		counts := info.FatesOf(seq, seq)
		var fate gearsfs.Fate
		for f, n := range counts {
			all[f] += n
			if n > 0 {
				fate = gearsfs.Fate(f)
			}
		}
		switch {
		case fate == gearsfs.FateUnknown:
			require.LessOrEqual(m.t, seq, s.LostBefore)
		case live[seq]:
			require.Equal(m.t, gearsfs.FateAcked, fate, "%d lives", seq)
		default:
			require.Equal(m.t, m.gone[seq], fate, "%d", seq)
		}
	}
	require.Equal(m.t, all, info.FatesOf(1, s.NextSeq-1))
}

func (m *modelled) end() gearsfs.Place { return gearsfs.Place{Pos: m.s.Tail, Seq: m.s.NextSeq} }

func (m *modelled) moveHead() {
	if len(m.list) > 0 {
		m.s.Head = m.list[0].at
	} else {
		m.s.Head = m.end()
	}
}

func (m *modelled) step() string {
	m.now++
	switch op := m.rand.IntN(120); {
	case op < 35:
		return m.append()
	case op >= 110:
		m.q.Clean()
		return "clean"
	case op >= 104:
		return m.due()
	case op >= 102:
		return m.discardOlder()
	case op >= 100:
		return m.dropOldest()
	case op < 65:
		return m.hand()
	case op < 80:
		return m.settle()
	case op < 82:
		m.q.DropWindow()
		return "drop window"
	case op < 85: // as a node that starts again
		m.q.DropWindow()
		q, err := NewQueue(*m.q.State(), m.rows, NewPool(poolBytes))
		require.NoError(m.t, err)
		m.q = q
		return "reload"
	case op < 86:
		require.NoError(m.t, m.q.Clear())
		m.lose(func(*modelRecord) bool { return true }, gearsfs.FateCleared)
		m.list = nil
		m.s.Tail = m.s.Head.Pos
		m.s.Head = m.end()
		m.s.Cursor = m.s.Head
		return "clear"
	case op < 90:
		return m.setTail()
	case op < 94:
		return m.insert()
	case op < 98:
		r := m.pick(func(*modelRecord) bool { return true })
		if r == nil {
			return "nothing to replace"
		}
		was := len(r.data)
		r.data = m.data()[:0]
		for range was {
			r.data = append(r.data, byte(m.rand.Uint32()))
		}
		m.q.Replace(r.at, was, nil, &Record{Data: r.data, Type: "type", Time: r.time, Block: r.block})
		return "replace"
	default:
		r := m.pick(func(r *modelRecord) bool { return r.at != m.s.Head })
		if r == nil {
			return "nothing to remove"
		}
		require.NoError(m.t, m.q.Remove(r.at, len(r.data)))
		m.gone[r.at.Seq] = gearsfs.FateCleared
		m.remove(func(x *modelRecord) bool { return x == r })
		return "remove"
	}
}

func (m *modelled) append() string {
	data := m.data()
	r := &modelRecord{at: m.end(), data: data, time: m.now}
	if m.rand.IntN(3) > 0 {
		require.Equal(m.t, r.at, m.q.Append(data, "type", m.now))
	} else {
		r.until = m.now + 4
		fresh := slices.ContainsFunc(m.list, func(r *modelRecord) bool { return !r.out })
		require.Equal(m.t, r.at, m.q.AppendDelayed(data, "type", m.now, r.until))
		if m.s.Cursor.Pos == m.s.Tail && !fresh {
			m.pass(r)
		}
	}
	m.list = append(m.list, r)
	m.s.NextSeq++
	m.s.Tail += gearsfs.Pos(len(data))
	return "append"
}

// pass moves the cursor behind a record.
func (m *modelled) pass(r *modelRecord) {
	m.s.Cursor = behind(r.at, len(r.data))
	for _, r := range m.list {
		r.out = r.out || r.at.Less(m.s.Cursor)
	}
	r.out = true
}

func (m *modelled) due() string {
	r := m.pick((*modelRecord).delayed)
	if r == nil {
		return "nothing delayed"
	}
	m.q.Due(r.at)
	r.until = 0
	require.True(m.t, m.q.Older())
	require.False(m.t, m.q.Older())
	return "due"
}

// discard removes a record that goes by age or for others.
func (m *modelled) discard(gone *modelRecord) {
	if !gone.out {
		m.pass(gone)
	}
	m.s.Discarded++
	m.gone[gone.at.Seq] = gearsfs.FateDiscarded
	m.remove(func(r *modelRecord) bool { return r == gone })
	m.moveHead()
}

func (m *modelled) discardOlder() string {
	limit, last := 1+m.rand.IntN(4), m.now-min(m.now, m.rand.Uint64N(30))
	want := 0
	for want < limit {
		i := slices.IndexFunc(m.list, (*modelRecord).ready)
		if i < 0 {
			break
		}
		time, err := m.q.Front()
		require.NoError(m.t, err)
		if want == 0 {
			require.Equal(m.t, m.list[i].time, time)
		}
		if m.list[i].time > last {
			break
		}
		m.discard(m.list[i])
		want++
	}
	n, err := m.q.DiscardOlder(last, limit)
	require.NoError(m.t, err)
	require.Equal(m.t, want, n)
	return "discard older"
}

func (m *modelled) dropOldest() string {
	l := gearsfs.Limits{Records: 5 + m.rand.Uint64N(20), Bytes: 100 + m.rand.Uint64N(60<<10)}
	m.q.SetLimits(l)
	n, bytes := 1+m.rand.Uint64N(l.Records), m.rand.Uint64N(l.Bytes)
	for len(m.list) > 0 {
		var held uint64
		for _, r := range m.list {
			held += uint64(len(r.data))
		}
		if uint64(len(m.list))+n <= l.Records && held+bytes <= l.Bytes {
			break
		}
		m.discard(m.list[0])
	}
	require.NoError(m.t, m.q.DropOldest(n, bytes))
	return "drop oldest"
}

func (m *modelled) hand() string {
	limit, bytesMax, lease := 1+m.rand.IntN(4), m.rand.IntN(1000), m.rand.IntN(2) == 0
	var want []*modelRecord
	left := bytesMax
	for _, r := range m.list {
		if !r.ready() {
			continue
		}
		if len(want) == limit || len(want) > 0 && len(r.data) > left {
			break
		}
		left -= len(r.data)
		want = append(want, r)
	}
	peeked, err := m.q.Peek(nil, limit, bytesMax)
	require.NoError(m.t, err)
	require.Len(m.t, peeked, len(want))
	var got []Taken
	until := m.rand.Uint64N(2) * (m.now + 5)
	if lease {
		got, err = m.q.Lease(nil, limit, bytesMax, Grant{Holder: holder, Fence: m.next, Deadline: until, Tries: 3})
	} else {
		got, err = m.q.Take(nil, limit, bytesMax, false)
	}
	require.NoError(m.t, err)
	require.Len(m.t, got, len(want))
	for i, r := range want {
		require.Equal(m.t, r.at, peeked[i].Place)
		require.True(m.t, bytes.Equal(r.data, peeked[i].Record.Data))
		require.Equal(m.t, r.deliveries, peeked[i].Deliveries)
		r.deliveries++
		require.Equal(m.t, r.at, got[i].Place)
		require.True(m.t, bytes.Equal(r.data, got[i].Record.Data))
		require.Equal(m.t, r.deliveries, got[i].Deliveries)
		if !r.out {
			m.pass(r)
		}
		if lease {
			require.Equal(m.t, until, got[i].Deadline)
			r.fence, r.holder, r.until = m.next, holder, until
			m.next++
		}
	}
	if !lease && len(want) > 0 {
		m.remove(func(r *modelRecord) bool { return slices.Contains(want, r) })
		m.moveHead()
	}
	return fmt.Sprintf("hand out %d, lease %v", len(want), lease)
}

func (m *modelled) settle() string {
	r := m.pick(func(r *modelRecord) bool { return r.fence != 0 })
	if r == nil {
		return "nothing leased"
	}
	require.True(m.t, m.q.Held(r.at, r.holder, r.fence))
	switch m.rand.IntN(6) {
	case 0:
		m.q.Return(r.at)
		r.fence, r.until = 0, 0
		return "return"
	case 1:
		r.fence, r.until = 0, m.now+3
		m.q.Delay(r.at, r.until)
		return "delay"
	case 2:
		r.until = m.now + 7
		m.q.Extend(r.at, r.until, 0)
		return "extend"
	}
	require.NoError(m.t, m.q.Ack(r.at))
	m.remove(func(x *modelRecord) bool { return x == r })
	m.moveHead()
	return "ack"
}

func (m *modelled) setTail() string {
	n := uint64(m.s.Tail - m.s.Head.Pos)
	tail := m.s.Head.Pos + 1 + gearsfs.Pos(m.rand.Uint64N(n+100))
	require.NoError(m.t, m.q.SetTail(tail))
	if tail < m.s.Tail {
		m.lose(func(r *modelRecord) bool { return r.at.Pos >= tail }, gearsfs.FateCleared)
		m.remove(func(r *modelRecord) bool { return r.at.Pos >= tail })
		if len(m.list) > 0 {
			last := m.list[len(m.list)-1]
			last.data = last.data[:min(len(last.data), int(tail-last.at.Pos))]
		}
		if cut := (gearsfs.Place{Pos: tail}); cut.Less(m.s.Cursor) {
			m.s.Cursor = cut
		}
	}
	m.s.Tail = tail
	return "set tail"
}

// insert puts a block into the first gap that there is, or behind the tail.
func (m *modelled) insert() string {
	pos := max(m.s.Cursor.Pos, m.s.Head.Pos)
	size := gearsfs.Pos(1 + m.rand.IntN(20))
	for _, r := range m.list {
		if r.at.Less(m.s.Cursor) {
			continue
		}
		if pos+size <= r.at.Pos {
			break
		}
		pos = r.at.Pos + gearsfs.Pos(len(r.data))
	}
	pos += gearsfs.Pos(m.rand.IntN(2) * m.rand.IntN(10))
	if i, _ := slices.BinarySearchFunc(m.list, gearsfs.Place{Pos: pos + size}, func(r *modelRecord, at gearsfs.Place) int {
		return cmp.Or(cmp.Compare(r.at.Pos, at.Pos), cmp.Compare(r.at.Seq, at.Seq))
	}); i > 0 && !m.list[i-1].at.Less(m.s.Cursor) && m.list[i-1].at.Pos+gearsfs.Pos(len(m.list[i-1].data)) > pos {
		return "no gap"
	}
	data := make([]byte, size)
	data[0] = byte(m.rand.Uint32())
	at := m.q.Insert(pos, &Record{Data: data, Type: "type", Time: m.now, Block: true})
	require.Equal(m.t, gearsfs.Place{Pos: pos, Seq: m.s.NextSeq}, at)
	m.s.NextSeq++
	m.s.Tail = max(m.s.Tail, pos+size)
	m.list = append(m.list, &modelRecord{at: at, data: data, block: true, time: m.now})
	slices.SortFunc(m.list, func(a, b *modelRecord) int {
		if a.at.Less(b.at) {
			return -1
		}
		return 1
	})
	return "insert"
}

// check compares the queue with the model and checks the package's invariants.
func (m *modelled) check() {
	s := m.q.State()
	want := State{
		NextSeq: m.s.NextSeq, Head: m.s.Head, Cursor: m.s.Cursor, Tail: m.s.Tail,
		Version: s.Version, Blocks: s.Blocks, Cleaned: s.Cleaned, Dead: s.Dead,
		Limits: s.Limits, Discarded: m.s.Discarded,
	}
	for _, r := range m.list {
		want.Bytes += uint64(len(r.data))
		switch {
		case r.fence != 0:
			want.Leased++
		case r.delayed():
			want.Delayed++
			if !r.out {
				want.DelayedAhead++
			}
		default:
			want.Ready++
			if r.out {
				want.Returned++
			}
		}
		require.Equal(m.t, r.out, r.at.Less(s.Cursor))
		require.True(m.t, m.q.Lives(r.at))
		out, marked := m.q.Out(r.at)
		require.Equal(m.t, r.out || r.delayed(), marked)
		require.Equal(m.t, r.until, out.Deadline)
		row, err := m.rows.Get(r.at)
		require.NoError(m.t, err)
		require.True(m.t, bytes.Equal(r.data, row.Data))
		require.False(m.t, r.at.Less(s.Head))
	}
	want.Lost, want.LostBefore = s.Lost, s.LostBefore
	require.Equal(m.t, want, *s)
	m.checkFates()
	require.LessOrEqual(m.t, s.Cursor.Pos, s.Tail)
	require.Equal(m.t, int(s.Leased+s.Returned+s.Delayed), m.rows.outs.len())
	require.Equal(m.t, int(s.Returned), m.q.back.len())
	fresh := 0
	for at := range m.rows.rows.from(s.Cursor) {
		if _, marked := m.q.Out(at); marked {
			continue
		}
		if i := fresh; i < m.q.window.len() {
			require.Equal(m.t, at, m.q.window.recs[m.q.window.first+i].at)
		}
		fresh++
	}
	require.Equal(m.t, int(m.q.fresh()), fresh, "every row from the cursor on is ready")
	for at := range m.rows.rows.from(gearsfs.Place{}) {
		if !at.Less(s.Cleaned) {
			break
		}
		require.True(m.t, m.q.Lives(at), "row %v in front of %v", at, s.Cleaned)
	}
}

func TestQueueAgainstModel(t *testing.T) {
	for run := range 60 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(run), func(t *testing.T) {
			t.Logf("seed %d", seed)
			q, rows := newQueue(t)
			m := &modelled{t: t, rand: rand.New(rand.NewPCG(seed, 0)), q: q, rows: rows, s: NewState(), next: 1, gone: make(map[gearsfs.Seq]gearsfs.Fate)}
			var log []string
			defer func() {
				if t.Failed() {
					t.Log(log[max(0, len(log)-20):])
				}
			}()
			for range 600 {
				log = append(log, m.step())
				m.check()
			}
		})
	}
}
