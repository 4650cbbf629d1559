package file

import (
	"container/heap"
	"encoding/binary"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// GEARSFS_TORTURE=1 makes the stream 10,000,000 records large, with 100,000 of
// them leased at a time; -records makes it any other size.
var largeRecords = flag.Int("records", 0, "how many records the large stream has; 0 is 20,000, or 10,000,000 of torture")

// largeHeapMax bounds the heap beside 1 KiB for each lease.
const largeHeapMax = 64 << 20

// large is a stream on a disk beside a model of it: what came back, and from
// where on nothing was handed out yet.
type large struct {
	*client
	rng    *rand.Rand
	ino    gearsfs.Ino
	n      int
	next   uint64
	back   seqHeap
	held   []*wire.Receipt
	acked  int
	handed int
}

type seqHeap []uint64

func (h seqHeap) Len() int           { return len(h) }
func (h seqHeap) Less(i, j int) bool { return h[i] < h[j] }
func (h seqHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *seqHeap) Push(x any)        { *h = append(*h, x.(uint64)) }
func (h *seqHeap) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	*h = (*h)[:last]
	return x
}

func newLarge(t *testing.T, n int) *large {
	dir := filepath.Join(t.TempDir(), "data")
	data, err := persist.Open(dir, persist.Options{FS: vfs.Default, Create: true, Name: "n", CacheBytes: 8 << 20, MemTableBytes: 8 << 20})
	require.NoError(t, err)
	r := &rig{t: t, data: data, now: rigStart}
	t.Cleanup(func() { require.NoError(t, r.data.Close()) })
	r.m, err = New(data.State, &r.seen)
	require.NoError(t, err)
	require.Zero(t, r.entry(&wire.Command{Op: &wire.Command_Init{Init: &wire.Init{Id: make([]byte, 16), Name: "main"}}})[0].Code)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return &large{client: r.client(1), rng: rand.New(rand.NewPCG(seed, 0)), n: n, next: 1}
}

// do applies a command of the session, which has confirmed all earlier ones.
func (l *large) do(op any) *wire.Answer {
	cmd := l.command(op)
	cmd.Confirmed = cmd.Seq
	a := l.entry(cmd)[0]
	require.NoError(l.t, answerError(a))
	return a
}

// fill puts the records; each says its seq.
func (l *large) fill() {
	for seq := 0; seq < l.n; {
		op := &wire.Put{Target: inRoot, Key: "jobs"}
		for range min(gearsfs.BatchRecordsMax, l.n-seq) {
			seq++
			op.Records = append(op.Records, &wire.NewRecord{Data: binary.BigEndian.AppendUint64(nil, uint64(seq))})
		}
		l.ino = gearsfs.Ino(l.do(op).Ino)
	}
}

// handedOut checks the order promise: each record is the first of those that
// can be taken.
func (l *large) handedOut(a *wire.Answer) {
	for _, r := range a.Records {
		want := l.next
		if len(l.back) > 0 {
			want = heap.Pop(&l.back).(uint64)
		} else {
			l.next++
		}
		if r.Seq != want || binary.BigEndian.Uint64(r.Data) != want {
			l.t.Fatalf("record %d was handed out, not %d", r.Seq, want)
		}
	}
	l.handed += len(a.Records)
}

func (l *large) lease(max int) {
	op := leaseFor(3600*second, uint32(max), "jobs")
	op.ByReceipt = l.rng.IntN(2) == 0
	a := l.do(op)
	l.handedOut(a)
	l.held = append(l.held, receipts(a)...)
}

// settle ends random leases in one way.
func (l *large) settle(n int, give bool) {
	n = min(n, len(l.held))
	l.rng.Shuffle(len(l.held), func(i, j int) { l.held[i], l.held[j] = l.held[j], l.held[i] })
	ended := l.held[len(l.held)-n:]
	l.held = l.held[:len(l.held)-n]
	if n == 0 {
		return
	}
	l.do(&wire.Settle{Receipts: ended, Return: give})
	if !give {
		l.acked += n
		return
	}
	for _, r := range ended {
		heap.Push(&l.back, r.Seq)
	}
}

// expire lets all leases run out.
func (l *large) expire() {
	l.now += 3600 * second
	entries := 0
	for due, ok := l.m.NextDue(); ok && due <= l.now; due, ok = l.m.NextDue() {
		l.do(&wire.Tick{})
		entries++
	}
	require.LessOrEqual(l.t, entries, len(l.held)/timersMax+1)
	for _, r := range l.held {
		heap.Push(&l.back, r.Seq)
	}
	l.held = nil
}

func (l *large) checkCounts() {
	info := l.info(uint64(l.ino), "jobs")
	require.Equal(l.t, []int{l.n - l.acked - len(l.held), len(l.held)}, []int{int(info.Records), int(info.Leased)})
}

func heapBytes() int {
	var stats runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&stats)
	return int(stats.HeapAlloc)
}

// TestLargeStream: of a stream that is larger than memory should be, many
// records are leased and come back at random: returned, and by their deadlines.
// What is handed out is always the first that can be, memory is bounded by the
// leases, and nothing is lost.
func TestLargeStream(t *testing.T) {
	n, leases := 20_000, 1_000
	if os.Getenv("GEARSFS_TORTURE") != "" {
		n, leases = 10_000_000, 100_000
	}
	if *largeRecords != 0 {
		n, leases = *largeRecords, *largeRecords/100
	}
	before := heapBytes()
	l := newLarge(t, n)
	l.fill()
	most := 0
	for l.handed < 6*leases {
		for len(l.held) < leases {
			l.lease(1 + l.rng.IntN(leases/10))
		}
		most = max(most, heapBytes()-before)
		l.checkCounts()
		switch l.rng.IntN(4) {
		case 0:
			l.expire()
		default:
			for range 8 {
				l.settle(1+l.rng.IntN(leases/10), l.rng.IntN(4) > 0)
			}
		}
	}
	t.Logf("%d records, %d leases at a time, %d handed out: at most %d MiB", n, leases, l.handed, most>>20)
	require.Less(t, most, largeHeapMax+leases<<10)
	l.expire()
	l.checkCounts()
	for left := l.n - l.acked; left > 0; {
		a := l.do(takeOp(gearsfs.BatchRecordsMax, "jobs"))
		l.handedOut(a)
		left -= len(a.Records)
	}
	require.EqualValues(t, l.n+1, l.next)
	require.Empty(t, l.back)
	require.Zero(t, l.nextDue())
	l.check()
}
