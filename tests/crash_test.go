package tests

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/block"
	"github.com/gearsfs/gearsfs/block/blocktest"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/persist"
)

// The machine loses its power at any operation on the disk, with any part of
// what was not synced lost: each client finds what it had done up to some
// moment, not before the last operation that was acknowledged as durable.
func TestCrashPoints(t *testing.T) {
	t.Parallel()
	points := int64(size(10_000, 200_000))
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var checked, next atomic.Int64
	began := time.Now()
	t.Run("shards", func(t *testing.T) {
		for shard := range 4 {
			t.Run(fmt.Sprint(shard), func(t *testing.T) {
				t.Parallel()
				for checked.Load() < points && !t.Failed() {
					run := uint64(next.Add(1))
					checked.Add(crashRun(t, seed, run))
				}
			})
		}
	})
	t.Logf("%d crash points in %v", checked.Load(), time.Since(began).Round(time.Millisecond))
	require.GreaterOrEqual(t, checked.Load(), points)
}

const crashClients = 3

// A crash is a disk as it may be after one, and what each client then may find:
// its states from index low to high.
type crash struct {
	fs        vfs.FS
	blocks    *blocktest.Memory
	low, high [crashClients]int64
}

// crashRun lets clients work on a new volume, crashes it at random moments and
// returns how many of these it looked at.
func crashRun(t *testing.T, seed, run uint64) int64 {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, run))
	mem := vfs.NewCrashableMem()
	blocks := blocktest.NewMemory(nil)
	require.NoError(t, blocks.MakeDir("/data"))
	require.NoError(t, blocks.SyncDir("/"))
	clients := make([]*crashClient, crashClients)
	for i := range clients {
		clients[i] = &crashClient{
			dir: fmt.Sprintf("c%d", i), rng: rand.New(rand.NewPCG(seed, run<<8|uint64(i))),
			streams: make(map[string][]crashRecord), states: []string{""},
		}
	}
	var mu sync.Mutex // guards rng and crashes
	var crashes []crash
	mayCrash := func() {
		mu.Lock()
		defer mu.Unlock()
		if rng.IntN(12) == 0 && len(crashes) < 64 {
			crashes = append(crashes, crashNow(mem, blocks, clients, rng))
		}
	}
	disk := errorfs.Wrap(roomy{mem}, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() != errorfs.OpIsRead {
			mayCrash()
		}
		return nil
	}))
	v, err := openCrashable(disk, blocktest.Faulty(blocks, func(op blocktest.Op) error {
		if op.Kind.Writes() {
			mayCrash()
		}
		return nil
	}))
	require.NoError(t, err, "seed %d, run %d", seed, run)
	var working sync.WaitGroup
	for _, c := range clients {
		working.Go(func() {
			if err := c.work(v, 25); err != nil {
				t.Errorf("seed %d, run %d: %v", seed, run, err)
			}
		})
	}
	working.Wait()
	mu.Lock()
	crashes = append(crashes, crashNow(mem, blocks, clients, rng))
	mu.Unlock()
	require.NoError(t, v.Close())
	for i, c := range crashes {
		if err := c.check(clients, rng, i%8 == 0); err != nil {
			t.Errorf("seed %d, run %d, crash %d of %d: %v", seed, run, i, len(crashes), err)
		}
	}
	return int64(len(crashes))
}

// crashNow takes the disk with the log and the state first: pages of the block
// store are given back a while after what made that possible is on it.
func crashNow(mem *vfs.MemFS, blocks *blocktest.Memory, clients []*crashClient, rng *rand.Rand) crash {
	var c crash
	for i := range clients {
		c.low[i] = clients[i].durable.Load()
	}
	clone := mem.CrashClone(vfs.CrashCloneCfg{
		UnsyncedDataPercent: []int{0, 30, 70, 100}[rng.IntN(4)],
		RNG:                 rand.New(rand.NewPCG(rng.Uint64(), 0)),
	})
	c.fs = roomy{clone}
	c.blocks = blocks.Crash(rng)
	for i := range clients {
		c.high[i] = clients[i].started.Load()
	}
	return c
}

// roomy is a file system that tells how much room it has, and it has much.
type roomy struct{ vfs.FS }

func (roomy) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: 1 << 40, TotalBytes: 1 << 40}, nil
}

func (r roomy) Unwrap() vfs.FS { return r.FS }

// openCrashable opens the volume on fs, with everything small so that what
// happens seldom happens soon, and short payloads in the block store.
func openCrashable(fs vfs.FS, blocks block.FS) (*dgm.Volume, error) {
	data, err := persist.Open("/data", persist.Options{
		FS: fs, Create: true, Name: "n",
		CacheBytes: 1 << 20, MemTableBytes: 64 << 10, SegmentBytes: 64 << 10, LogCacheBytes: 64 << 10,
	})
	if err != nil {
		return nil, err
	}
	return dgm.OpenVolume(context.Background(), dgm.VolumeConfig{Data: data, BlockFS: blocks, BlockLeast: 12, Log: slog.New(slog.DiscardHandler)})
}

// check opens what a crash left and compares it with what may be there.
func (c crash) check(clients []*crashClient, rng *rand.Rand, deep bool) error {
	v, err := openCrashable(c.fs, c.blocks)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	found := make([]string, len(clients))
	err = func() error {
		m, err := v.Local(dgm.Client{Caller: gearsfs.Root})
		if err != nil {
			return err
		}
		for i, client := range clients {
			if found[i], err = dump(m, client.dir); err != nil {
				return fmt.Errorf("read %s: %w", client.dir, err)
			}
		}
		return m.Close()
	}()
	if err := errors.Join(err, v.Close()); err != nil {
		return err
	}
	for i, client := range clients {
		may := client.states[c.low[i] : c.high[i]+1]
		if !slices.Contains(may, found[i]) {
			return fmt.Errorf("%s is not in any of its states %d to %d:\n%s\nthe first of them:\n%s\nthe last:\n%s",
				client.dir, c.low[i], c.high[i], found[i], may[0], may[len(may)-1])
		}
	}
	if deep {
		return checkTables(c.fs)
	}
	return nil
}

// checkTables looks for what contradicts itself in the tables.
func checkTables(fs vfs.FS) error {
	data, err := persist.Open("/data", persist.Options{FS: fs, Name: "n"})
	if err != nil {
		return err
	}
	m, err := file.New(data.State, deaf{})
	if err != nil {
		return errors.Join(err, data.Close())
	}
	return errors.Join(append(m.Check(), data.Close())...)
}

// deaf observes nothing.
type deaf struct{}

func (deaf) Applied(uint64, []file.Touched, []file.Changed) {}
func (deaf) MembersChanged()                                {}
func (deaf) Freed(uint64, []gearsfs.Extent)                 {}

func (deaf) Verify(_ uint64, state file.View) { state.Close() } //nolint:errcheck // it was not read

// dump describes all that is in a client's directory.
func dump(m dgm.Manager, dir string) (string, error) {
	ctx := context.Background()
	attr, err := m.Lookup(ctx, gearsfs.RootIno, dir)
	if errors.Is(err, gearsfs.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var out strings.Builder
	out.WriteString("dir\n")
	entries, err := m.ReadDir(ctx, attr.Ino, "", 100)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		fmt.Fprintf(&out, "%s\n", e.Name)
		if strings.HasPrefix(e.Name, "bytes") {
			text, err := m.Read(ctx, e.Attr.Ino, e.Attr.Head, 1<<20, nil)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&out, "  %q\n", text)
			continue
		}
		streams, err := m.ListStreams(ctx, gearsfs.ByIno(e.Attr.Ino), "", 100)
		if err != nil {
			return "", err
		}
		for _, s := range streams {
			records, err := m.Peek(ctx, dgm.Peek{File: gearsfs.ByIno(e.Attr.Ino), Key: s.Key, Max: 1000, NoWait: true, Follow: true})
			if err != nil && !errors.Is(err, gearsfs.ErrEmpty) {
				return "", err
			}
			for _, r := range records {
				fmt.Fprintf(&out, "  %s %d %s\n", s.Key, r.Place.Seq, r.Data)
			}
		}
	}
	return out.String(), nil
}
