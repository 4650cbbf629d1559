package stream

import (
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
	leased, err := q.Lease(nil, 4, 100, Grant{Holder: holder, Fence: 10})
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
		q.Clean()
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
			taken, err := q.Lease(nil, 1, 100, Grant{Holder: holder, Fence: fence})
			require.NoError(t, err)
			leased = append(leased, taken[0].Place)
			fence++
		} else {
			_, err := q.Take(nil, 1, 100, false)
			require.NoError(t, err)
		}
		q.Clean()
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

// Rows at or behind the cursor stay, also those of delayed records.
func TestCleaningKeepsWhatIsAhead(t *testing.T) {
	q, m := newQueue(t)
	for range cleanEvery {
		q.Append([]byte("x"), "", 0)
	}
	for range 3 {
		q.Append([]byte("y"), "", 0)
		q.AppendDelayed([]byte("z"), "", 0, 7)
	}
	_, err := q.Take(nil, cleanEvery, cleanEvery, false)
	require.NoError(t, err)
	q.Clean()
	require.Equal(t, 6, m.rows.len())
	require.Equal(t, q.State().Cursor, q.State().Cleaned)
	taken, err := q.Take(nil, 9, 100, false)
	require.NoError(t, err)
	require.Len(t, taken, 3)
}

// counted are rows that count what is asked of them.
type counted struct {
	*Memory
	scans, discards int
	wide            int // deletions that have to look for rows
}

func (c *counted) Delete(from, to gearsfs.Place) error {
	if to != next(from) {
		c.wide++
	}
	return c.Memory.Delete(from, to)
}

func (c *counted) Scan(from, to gearsfs.Place, yield func(gearsfs.Place, *Record) bool) error {
	c.scans++
	return c.Memory.Scan(from, to, yield)
}

func (c *counted) Discard(from, to gearsfs.Place) {
	c.discards++
	c.Memory.Discard(from, to)
}

// Leased records that follow each other have nothing between them to delete.
func TestCleaningDeletesNoEmptyRanges(t *testing.T) {
	for _, size := range []int{0, 1, 100} {
		c := &counted{Memory: new(Memory)}
		q, err := NewQueue(NewState(), c, NewPool(1<<20))
		require.NoError(t, err)
		for range 3 * cleanEvery {
			q.Append(make([]byte, size), "", 0)
		}
		fence, live := uint64(1), 0
		for i := range 2 * cleanEvery {
			if i/100%40 == 0 { // runs of leased ones
				_, err = q.Lease(nil, 1, 1, Grant{Fence: fence})
				fence++
				live++
			} else {
				_, err = q.Take(nil, 1, 1, false)
			}
			require.NoError(t, err)
		}
		q.Clean()
		require.LessOrEqual(t, c.discards, live/100+1, "records of %d bytes", size)
		require.Equal(t, cleanEvery+live, c.rows.len())
	}
}

// One record at the head is cleared without looking for rows, wherever it was put;
// one that stands elsewhere is found all the same.
func TestClearingOneRecord(t *testing.T) {
	for name, test := range map[string]struct {
		put  func(q *Queue)
		wide int
	}{
		"put":              {func(q *Queue) { q.Append([]byte("put"), "", 0) }, 0},
		"written":          {func(q *Queue) { q.Insert(0, &Record{Data: []byte("written"), Block: true}) }, 0},
		"written, further": {func(q *Queue) { q.Insert(5, &Record{Data: []byte("written"), Block: true}) }, 1},
		"put behind another": {func(q *Queue) {
			q.Append([]byte("another"), "", 0)
			_, err := q.Take(nil, 1, 100, false)
			require.NoError(t, err)
			q.Append([]byte("put"), "", 0)
		}, 0},
		"in front of another": {func(q *Queue) {
			q.Insert(9, &Record{Data: []byte("first"), Block: true})
			q.Insert(0, &Record{Data: []byte("front"), Block: true})
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			c := &counted{Memory: new(Memory)}
			q, err := NewQueue(NewState(), c, NewPool(1<<20))
			require.NoError(t, err)
			for range 2 {
				test.put(q)
				q.DropWindow()
				c.wide = 0
				head := q.State().Head
				require.NoError(t, q.Clear())
				require.Equal(t, test.wide, c.wide)
				for at := range c.rows.from(head) {
					require.Fail(t, "a row is left", "%v", at)
				}
				require.Zero(t, q.State().Ready+q.State().Bytes)
			}
		})
	}
}

// Who measures what it takes next reads the rows once.
func TestMeasuringReadsIntoTheWindow(t *testing.T) {
	const n, each = 10_000, 60
	c := &counted{Memory: new(Memory)}
	q, err := NewQueue(NewState(), c, NewPool(1<<20))
	require.NoError(t, err)
	for range n {
		q.Append([]byte("0123456789"), "", 0)
	}
	q.DropWindow()
	c.scans = 0
	for i := 0; i < n; i += each {
		count := min(each, n-i)
		bytes, err := q.Measure(uint64(count), 1<<20)
		require.NoError(t, err)
		require.EqualValues(t, 10*count, bytes)
		taken, err := q.Lease(nil, count, 1<<20, Grant{Fence: uint64(i + 1)})
		require.NoError(t, err)
		require.Len(t, taken, count)
		require.EqualValues(t, i+1, taken[0].Place.Seq)
		require.EqualValues(t, i+count, taken[count-1].Place.Seq)
	}
	require.LessOrEqual(t, c.scans, n/(windowRecordsMax-each)+1)
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
