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

const poolBytes = 1 << 20

func newQueue(t testing.TB) (*Queue, *Memory) {
	m := new(Memory)
	q, err := NewQueue(NewState(), m, NewPool(poolBytes))
	require.NoError(t, err)
	return q, m
}

var holder = gearsfs.SessionID{Minted: 1, Salt: 7}

func seqs(taken []Taken) (list []gearsfs.Seq) {
	for _, t := range taken {
		list = append(list, t.Place.Seq)
	}
	return list
}

func TestReturnedRecordsKeepTheirPlaces(t *testing.T) {
	q, _ := newQueue(t)
	for i := range 6 {
		q.Append([]byte{byte(i)}, "", 0)
	}
	leased, err := q.Lease(nil, 4, 100, holder, 10)
	require.NoError(t, err)
	require.Equal(t, []gearsfs.Seq{1, 2, 3, 4}, seqs(leased))
	q.Return(leased[2].Place)
	q.Return(leased[0].Place)
	taken, err := q.Take(nil, 3, 100, false)
	require.NoError(t, err)
	require.Equal(t, []gearsfs.Seq{1, 3, 5}, seqs(taken))
	require.Equal(t, uint32(2), taken[0].Deliveries)
	require.Equal(t, uint32(1), taken[2].Deliveries)
	require.Equal(t, gearsfs.Seq(2), q.State().Head.Seq)
	require.False(t, q.Held(leased[0].Place, holder, 10))
	require.True(t, q.Held(leased[1].Place, holder, 11))
	require.False(t, q.Held(leased[1].Place, gearsfs.SessionID{Salt: 1}, 11))
	require.NoError(t, q.Ack(leased[1].Place))
	require.Equal(t, gearsfs.Seq(4), q.State().Head.Seq)
}

func TestEmptyRecordsAreRecords(t *testing.T) {
	q, _ := newQueue(t)
	for range 3 {
		q.Append(nil, "", 0)
	}
	require.Equal(t, uint64(3), q.State().Ready)
	for i := range 3 {
		taken, err := q.Take(nil, 1, 0, false)
		require.NoError(t, err)
		require.Equal(t, []gearsfs.Seq{gearsfs.Seq(i + 1)}, seqs(taken))
	}
	require.True(t, q.State().Drained())
}

func TestATakeKeepsToItsBytes(t *testing.T) {
	q, _ := newQueue(t)
	for range 5 {
		q.Append(make([]byte, 10), "", 0)
	}
	taken, err := q.Take(nil, 5, 25, false)
	require.NoError(t, err)
	require.Len(t, taken, 2)
	taken, err = q.Take(nil, 5, 3, false)
	require.NoError(t, err)
	require.Len(t, taken, 1, "the first is always handed out")
}

func TestLimits(t *testing.T) {
	s := NewState()
	s.Limits = gearsfs.Limits{Records: 2, Bytes: 10}
	require.True(t, s.Fits(5, 100), "what is larger than the limit fits into an empty stream")
	s.Ready, s.Bytes = 1, 5
	require.True(t, s.Fits(1, 5))
	require.False(t, s.Fits(2, 2))
	require.False(t, s.Fits(1, 6))
	s.Ready, s.Leased = 0, 1
	require.False(t, s.Fits(2, 2), "leased records count")
}

// A queue far larger than its window goes through it, and rows of what is gone
// don't pile up.
func TestBacklogKeepsWindowAndRowsSmall(t *testing.T) {
	n := 1_000_000
	if testing.Short() {
		n = 100_000
	}
	q, m := newQueue(t)
	data := make([]byte, 16)
	for range n {
		q.Append(data, "", 0)
		require.LessOrEqual(t, q.window.len(), windowRecordsMax)
	}
	var taken []Taken
	var err error
	for i := 0; i < n; {
		taken, err = q.Take(taken[:0], 1+i%7, 1<<20, false)
		require.NoError(t, err)
		for _, r := range taken {
			i++
			if r.Place.Seq != gearsfs.Seq(i) {
				t.Fatalf("took %d, want %d", r.Place.Seq, i)
			}
		}
		if q.window.len() > windowRecordsMax || q.window.bytes > windowBytesMax {
			t.Fatalf("window of %d records", q.window.len())
		}
		if gone := m.rows.len() - int(q.s.Ready); gone > cleanEvery+windowRecordsMax {
			t.Fatalf("%d rows of records that are gone", gone)
		}
	}
	require.True(t, q.State().Drained())
	require.Equal(t, poolBytes, q.window.pool.left)
}

func TestWindowsShareAPool(t *testing.T) {
	pool := NewPool(10 * windowRecordCost)
	var queues []*Queue
	for range 20 {
		q, err := NewQueue(NewState(), new(Memory), pool)
		require.NoError(t, err)
		for range 50 {
			q.Append(nil, "t", 0)
		}
		queues = append(queues, q)
	}
	held := 0
	for _, q := range queues {
		held += q.window.len()
	}
	require.LessOrEqual(t, held, 10+len(queues))
	for _, q := range queues {
		for i := range 50 {
			taken, err := q.Take(nil, 1, 0, false)
			require.NoError(t, err)
			require.Equal(t, []gearsfs.Seq{gearsfs.Seq(i + 1)}, seqs(taken))
			require.Equal(t, "t", taken[0].Record.Type)
		}
		q.DropWindow()
	}
	require.Equal(t, 10*windowRecordCost, pool.left)
}

// What is handed out stays as it is, whatever happens to the queue.
func TestTakenDataStays(t *testing.T) {
	q, _ := newQueue(t)
	buf := []byte("first")
	q.Append(buf, "", 0)
	copy(buf, "XXXXX")
	taken, err := q.Take(nil, 1, 100, false)
	require.NoError(t, err)
	for i := range 1000 {
		q.Append([]byte(fmt.Sprint(i)), "", 0)
		_, err := q.Take(nil, 1, 100, false)
		require.NoError(t, err)
	}
	require.Equal(t, "first", string(taken[0].Record.Data))
}

// modelRecord is a record of the plain model.
type modelRecord struct {
	at         gearsfs.Place
	data       []byte
	block      bool
	holder     gearsfs.SessionID
	fence      uint64 // 0 is ready
	out        bool
	deliveries uint32
}

// modelled is a Queue beside a plain list of what lives in it.
type modelled struct {
	t    testing.TB
	rand *rand.Rand
	q    *Queue
	rows *Memory
	list []*modelRecord // by place
	s    State          // of which only what has no other source is kept
	next uint64         // fence
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

func (m *modelled) end() gearsfs.Place { return gearsfs.Place{Pos: m.s.Tail, Seq: m.s.NextSeq} }

func (m *modelled) moveHead() {
	if len(m.list) > 0 {
		m.s.Head = m.list[0].at
	} else {
		m.s.Head = m.end()
	}
}

func (m *modelled) step() string {
	switch op := m.rand.IntN(100); {
	case op < 35:
		data := m.data()
		at := m.q.Append(data, "type", 9)
		require.Equal(m.t, m.end(), at)
		m.list = append(m.list, &modelRecord{at: at, data: data})
		m.s.NextSeq++
		m.s.Tail += gearsfs.Pos(len(data))
		return "append"
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
		m.q.Replace(r.at, was, &Record{Data: r.data, Type: "type", Time: 9, Block: r.block})
		return "replace"
	default:
		r := m.pick(func(r *modelRecord) bool { return r.at != m.s.Head })
		if r == nil {
			return "nothing to remove"
		}
		require.NoError(m.t, m.q.Remove(r.at, len(r.data)))
		m.remove(func(x *modelRecord) bool { return x == r })
		return "remove"
	}
}

func (m *modelled) hand() string {
	limit, bytesMax, lease := 1+m.rand.IntN(4), m.rand.IntN(1000), m.rand.IntN(2) == 0
	var want []*modelRecord
	left := bytesMax
	for _, r := range m.list {
		if r.fence != 0 {
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
	if lease {
		got, err = m.q.Lease(nil, limit, bytesMax, holder, m.next)
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
			m.s.Cursor = behind(r.at, len(r.data))
		}
		r.out = true
		if lease {
			r.fence, r.holder = m.next, holder
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
	if m.rand.IntN(3) == 0 {
		m.q.Return(r.at)
		r.fence = 0
		return "return"
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
	at := m.q.Insert(pos, &Record{Data: data, Type: "type", Time: 9, Block: true})
	require.Equal(m.t, gearsfs.Place{Pos: pos, Seq: m.s.NextSeq}, at)
	m.s.NextSeq++
	m.s.Tail = max(m.s.Tail, pos+size)
	m.list = append(m.list, &modelRecord{at: at, data: data, block: true})
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
	}
	for _, r := range m.list {
		want.Bytes += uint64(len(r.data))
		switch {
		case r.fence != 0:
			want.Leased++
		default:
			want.Ready++
			if r.out {
				want.Returned++
			}
		}
		require.Equal(m.t, r.out, r.at.Less(s.Cursor))
		require.True(m.t, m.q.Lives(r.at))
		row, err := m.rows.Get(r.at)
		require.NoError(m.t, err)
		require.True(m.t, bytes.Equal(r.data, row.Data))
		require.False(m.t, r.at.Less(s.Head))
	}
	require.Equal(m.t, want, *s)
	require.LessOrEqual(m.t, s.Cursor.Pos, s.Tail)
	require.Equal(m.t, int(s.Leased+s.Returned), m.rows.outs.len())
	require.Equal(m.t, int(s.Returned), m.q.back.len())
	fresh := 0
	for at := range m.rows.rows.from(s.Cursor) {
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
			m := &modelled{t: t, rand: rand.New(rand.NewPCG(seed, 0)), q: q, rows: rows, s: NewState(), next: 1}
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

// Cleaning passes by what is out and by nothing else.
func TestCleaningPassesOuts(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	q, m := newQueue(t)
	var leased []gearsfs.Place
	fence := uint64(1)
	for range 60_000 {
		q.Append([]byte("x"), "", 0)
		if random.IntN(10) == 0 {
			taken, err := q.Lease(nil, 1, 100, holder, fence)
			require.NoError(t, err)
			leased = append(leased, taken[0].Place)
			fence++
		} else {
			_, err := q.Take(nil, 1, 100, false)
			require.NoError(t, err)
		}
		if len(leased) > 2000 {
			i := random.IntN(len(leased))
			require.NoError(t, q.Ack(leased[i]))
			leased = slices.Delete(leased, i, i+1)
		}
	}
	require.Less(t, m.rows.len(), 20_000, "rows that are kept, for %d that live", len(leased))
	for _, at := range leased {
		_, err := m.Get(at)
		require.NoError(t, err)
		require.NoError(t, q.Ack(at))
	}
	require.True(t, q.State().Drained())
}

func TestSortedAgainstSlice(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 2))
	var s sorted[int]
	model := map[gearsfs.Place]int{}
	for i := range 20_000 {
		at := gearsfs.Place{Pos: gearsfs.Pos(random.IntN(700)), Seq: gearsfs.Seq(random.IntN(2))}
		if i < 10_000 == (random.IntN(3) > 0) {
			s.set(at, i)
			model[at] = i
		} else {
			s.delete(at)
			delete(model, at)
		}
		require.Equal(t, len(model), s.len())
		v, ok := s.get(at)
		w, has := model[at]
		require.Equal(t, has, ok)
		require.Equal(t, w, v)
	}
	from := gearsfs.Place{Pos: 300, Seq: 1}
	var want []gearsfs.Place
	before, hasBefore := gearsfs.Place{}, false
	for at := range model {
		if !at.Less(from) {
			want = append(want, at)
		} else if !hasBefore || before.Less(at) {
			before, hasBefore = at, true
		}
	}
	slices.SortFunc(want, func(a, b gearsfs.Place) int {
		return cmp.Or(cmp.Compare(a.Pos, b.Pos), cmp.Compare(a.Seq, b.Seq))
	})
	var got []gearsfs.Place
	for at := range s.from(from) {
		got = append(got, at)
	}
	require.Equal(t, want, got)
	at, ok := s.before(from)
	require.Equal(t, hasBefore, ok)
	require.Equal(t, before, at)
}
