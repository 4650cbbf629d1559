package persist

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/gearsfs/gearsfs"
	"github.com/stretchr/testify/require"
)

// What the tests install: over the state and log of entry 5 the snapshot of
// entry 30, of term 3.
const (
	oldEntry, newEntry = 5, 30
	newTerm            = 3
)

// whichState says whether a directory holds the old or the new state, and that
// the log agrees.
func whichState(d *Data) (isNew bool, err error) {
	n, err := stateOfEntry(d.State)
	if err != nil {
		return false, err
	}
	first, last, hard := d.Log.First(), d.Log.Last(), string(d.Log.HardState())
	switch {
	case n == oldEntry && first == 1 && last == oldEntry && hard == "old":
		_, err := d.Log.Entries(1, oldEntry+1, all)
		return false, err
	case n == newEntry && first == newEntry+1 && last == newEntry && hard == "new":
		if term, err := d.Log.Term(newEntry); err != nil || term != newTerm {
			return true, fmt.Errorf("entry %d has term %d, %v", newEntry, term, err)
		}
		return true, nil
	}
	return false, fmt.Errorf("state of entry %d, log from %d to %d with hard state %q", n, first, last, hard)
}

// reopened says which state there is after a crash that left disk.
func reopened(disk FS) (isNew bool, err error) {
	d, err := Open("data", smallData(disk))
	if err != nil {
		return false, err
	}
	isNew, err = whichState(d)
	for _, name := range []string{stateName, numberedState(1)} {
		there, existsErr := exists(disk, d.path(name))
		err = errors.Join(err, existsErr)
		if there != (name == d.base.state) {
			err = errors.Join(err, fmt.Errorf("%s is there: %v", name, there))
		}
	}
	next := d.Log.Last() + 1
	err = errors.Join(err, d.Log.Append([]LogEntry{{Index: next, Term: 9}}, nil), setState(d, 99), d.Close())
	if err != nil {
		return isNew, err
	}
	if d, err = Open("data", smallData(disk)); err != nil {
		return isNew, err
	}
	n, err := stateOfEntry(d.State)
	if err == nil && (n != 99 || d.Log.Last() != next) {
		err = fmt.Errorf("later, the state of entry %d and a log up to %d", n, d.Log.Last())
	}
	return isNew, errors.Join(err, d.Close())
}

// crasher cuts the power before each write, with all, none and some of what was
// not synced left.
type crasher struct {
	t     *testing.T
	disk  *vfs.MemFS
	armed atomic.Bool
	check func(disk *vfs.MemFS, percent int) error

	mu     sync.Mutex // Pebble's goroutines write too
	rng    *rand.Rand
	points int
}

func (c *crasher) MaybeError(op errorfs.Op) error {
	if !c.armed.Load() || op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, percent := range []int{0, 50, 50, 100} {
		c.points++
		left := c.disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: c.rng})
		if err := c.check(left, percent); err != nil {
			c.t.Errorf("%d %% of what was not synced is left before %v: %v", percent, op, err)
		}
	}
	return nil
}

func (c *crasher) String() string { return "crasher" }

// TestInstallCrashes cuts the power at every point of an Install, and also of
// the Open that finishes it: the state is the old or the new one, never
// between, and once it is the new one it stays so.
func TestInstallCrashes(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	s := newSnapshot(t, newEntry)
	var old, fresh, again int
	durable := false
	c := &crasher{t: t, disk: vfs.NewCrashableMem(), rng: rand.New(rand.NewPCG(seed, 0))}
	c.check = func(disk *vfs.MemFS, percent int) error {
		if percent == 100 && !isThere(disk, "data/log/00000002.seg") && isThere(disk, "data/base") && again == 0 {
			// The new state counts, and the log is the old one's still.
			again = crashesOfOpen(t, disk, seed)
		}
		isNew, err := reopened(disk)
		if isNew {
			fresh++
		} else {
			old++
		}
		if !isNew && durable {
			err = errors.Join(err, errors.New("the old state is back"))
		}
		durable = durable || isNew && percent == 0
		return err
	}
	d := newDataAt(t, errorfs.Wrap(c.disk, c), oldEntry)
	require.NoError(t, syncDir(c.disk, ""))
	in := newIncoming(t, d, s)
	c.armed.Store(true)
	require.NoError(t, d.Install(in, newEntry, newTerm, []byte("new")))
	isNew, err := whichState(d)
	require.NoError(t, err)
	require.True(t, isNew)
	c.mu.Lock()
	isNew, err = reopened(c.disk.CrashClone(vfs.CrashCloneCfg{}))
	c.mu.Unlock()
	require.NoError(t, err)
	require.True(t, isNew, "it is durable when Install returns")
	require.NoError(t, d.Close())
	t.Logf("%d crash points: %d times the old state, %d times the new; %d while opening", c.points, old, fresh, again)
	require.Greater(t, old, 50)
	require.Greater(t, fresh, 20)
	require.Greater(t, again, 20)
}

func isThere(disk FS, path string) bool {
	there, err := exists(disk, path)
	return there && err == nil
}

// crashesOfOpen cuts the power at every point of an Open that has an Install
// to finish.
func crashesOfOpen(t *testing.T, disk *vfs.MemFS, seed uint64) (points int) {
	rng := rand.New(rand.NewPCG(seed, 1))
	c := &crasher{t: t, disk: disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rng}), rng: rng}
	c.check = func(disk *vfs.MemFS, _ int) error {
		isNew, err := reopened(disk)
		if err == nil && !isNew {
			err = errors.New("the old state is back")
		}
		return err
	}
	// What a process that died had not synced a power cut may still take.
	if err := syncDir(c.disk, "data"); err != nil {
		t.Error(err)
	}
	c.armed.Store(true)
	d, err := Open("data", smallData(errorfs.Wrap(c.disk, c)))
	if err == nil {
		err = d.Close()
	}
	if err != nil {
		t.Error(err)
	}
	return c.points
}

// TestInstallFailsEachIO fails each operation of an Install in turn: the old
// state and log go on, or the log takes nothing more; and the next process
// finds the old or the new ones.
func TestInstallFailsEachIO(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	s := newSnapshot(t, newEntry)
	results := map[string]int{}
	for i := 0; ; i++ {
		disk := vfs.NewCrashableMem()
		at := failOperation(i)
		counter := errorfs.Counter{Injector: at}
		var armed atomic.Bool
		d := newDataAt(t, errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if !armed.Load() || op.Kind == errorfs.OpFileSync && op.Path == "data/"+numberedState(1) {
				return nil // Pebble panics when it can't sync its directory
			}
			return counter.MaybeError(op)
		})), oldEntry)
		in := newIncoming(t, d, s)
		armed.Store(true)
		err := d.Install(in, newEntry, newTerm, []byte("new"))
		armed.Store(false)
		failed := counter.Load() > 0
		require.True(t, failed || err == nil)

		var last uint64
		isNew, stateErr := whichState(d)
		require.NoError(t, stateErr, "operation %d", i)
		appended := d.Log.Append([]LogEntry{{Index: d.Log.Last() + 1, Term: 9}}, nil)
		switch {
		case err == nil:
			require.True(t, isNew)
			require.NoError(t, appended)
			results["done"]++
		case appended != nil:
			results["broken"]++
		case isNew:
			results["done, not cleaned up"]++
		default:
			results["undone"]++
		}
		if appended == nil {
			require.NoError(t, d.Log.Sync())
			last = d.Log.Last()
		}
		left := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
		again, openErr := Open("data", smallData(left))
		require.NoError(t, openErr, "operation %d", i)
		n, stateErr := stateOfEntry(again.State)
		require.NoError(t, stateErr)
		if appended == nil { // nothing that was appended may be lost
			require.Equal(t, last, again.Log.Last(), "operation %d", i)
			require.Equal(t, isNew, n == newEntry, "operation %d", i)
		} else {
			_, err = whichState(again)
			require.NoError(t, err, "operation %d", i)
		}
		require.NoError(t, again.Close())
		if closed := d.Close(); appended == nil {
			require.NoError(t, closed)
		}
		if !failed {
			break
		}
	}
	t.Log(results)
	require.Greater(t, results["undone"], 20)
	require.Greater(t, results["broken"], 3)
	require.Positive(t, results["done"])
}

// TestInstallOfWhatWasNotSynced: the process that wrote the files died before
// it had synced them, and the power fails after the Install of the next.
func TestInstallOfWhatWasNotSynced(t *testing.T) {
	s := newSnapshot(t, newEntry)
	disk := vfs.NewCrashableMem()
	var unsynced atomic.Bool
	d := newDataAt(t, errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if unsynced.Load() && strings.HasPrefix(op.Path, "data/incoming/") && (op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData) {
			return errorfs.ErrInjected
		}
		return nil
	})), oldEntry)
	in, err := d.Receive(s.ID, s.Files)
	require.NoError(t, err)
	unsynced.Store(true)
	failed := 0
	for _, f := range s.Files {
		for off := uint64(0); off < f.Bytes; off += 700 {
			b, err := s.ReadAt(f.Name, off, 700)
			require.NoError(t, err)
			if err := in.Write(f.Name, off, b); err != nil {
				require.ErrorIs(t, err, errorfs.ErrInjected)
				failed++
			}
		}
	}
	require.NotZero(t, failed)
	unsynced.Store(false)
	in, err = d.Receive(s.ID, s.Files)
	require.NoError(t, err)
	for _, f := range s.Files {
		require.Equal(t, f.Bytes, in.Have(f.Name), f.Name)
	}
	require.NoError(t, in.Verify())
	require.NoError(t, d.Install(in, newEntry, newTerm, []byte("new")))
	isNew, err := reopened(disk.CrashClone(vfs.CrashCloneCfg{}))
	require.NoError(t, err)
	require.True(t, isNew)
	require.NoError(t, d.Close())
}

// TestInstallOnAFullDisk changes nothing, and succeeds when there is room.
func TestInstallOnAFullDisk(t *testing.T) {
	s := newSnapshot(t, newEntry)
	disk := vfs.NewMem()
	full := &fullDisk{}
	d := newDataAt(t, errorfs.Wrap(disk, full), oldEntry)
	in, err := d.Receive(s.ID, s.Files)
	require.NoError(t, err)
	require.NoError(t, fetch(in, s, 3000))
	full.inPlace = true
	full.set(true)
	require.ErrorIs(t, fetch(in, s, all), gearsfs.ErrNoSpace)
	full.set(false)
	full.inPlace = false
	require.NoError(t, fetch(in, s, all))
	require.NoError(t, in.Verify())
	full.set(true)
	require.ErrorContains(t, d.Install(in, newEntry, newTerm, []byte("new")), "no space")
	isNew, err := whichState(d)
	require.NoError(t, err)
	require.False(t, isNew)
	full.set(false)
	require.NoError(t, d.Install(newIncoming(t, d, s), newEntry, newTerm, []byte("new")))
	isNew, err = whichState(d)
	require.NoError(t, err)
	require.True(t, isNew)
	require.NoError(t, d.Close())
}

// TestViewsAcrossInstall: who reads the tables before goes on reading them;
// they go when the last reader is done.
func TestViewsAcrossInstall(t *testing.T) {
	disk := vfs.NewMem()
	d := newDataAt(t, disk, oldEntry)
	before, other := d.State.View(), d.State.View()
	it, err := before.Scan(TableRange(TableInode))
	require.NoError(t, err)
	require.True(t, it.First())
	require.NoError(t, d.Install(newIncoming(t, d, newSnapshot(t, newEntry)), newEntry, newTerm, nil))
	after := d.State.View()
	requireState(t, newEntry, after)
	requireState(t, oldEntry, before)
	rows := 1
	for it.Next() {
		rows++
	}
	require.NoError(t, it.Close())
	require.Equal(t, stateRows, rows)
	require.NoError(t, before.Close())
	requireState(t, oldEntry, other)
	require.True(t, isThere(disk, "data/state"))
	require.NoError(t, other.Close())
	require.NoError(t, after.Close())
	require.NoError(t, d.Close()) // waits for it
	require.False(t, isThere(disk, "data/state"))
}

// TestInstallBesideReaders: everything that may run beside an Install does.
func TestInstallBesideReaders(t *testing.T) {
	d := newDataAt(t, vfs.NewMem(), 1)
	stop := make(chan struct{})
	var wait sync.WaitGroup
	run := func(f func() error) {
		wait.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := f(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	run(func() error {
		v := d.State.View()
		_, err := stateOfEntry(v)
		return errors.Join(err, v.Close())
	})
	run(func() error { return <-d.State.Flush() })
	run(func() error {
		s, err := d.MakeSnapshot()
		if err != nil {
			return err
		}
		rows, err := s.Reader()
		if err != nil {
			return err
		}
		_, err = stateOfEntry(rows)
		return errors.Join(err, rows.Close(), s.Close())
	})
	run(func() error {
		if d.State.Bytes() == 0 {
			return errors.New("the state takes no disk")
		}
		_, _, err := d.Free()
		if errors.Is(err, gearsfs.ErrUnsupported) {
			err = nil
		}
		return err
	})
	for n := byte(10); n < 200; n += 10 {
		require.NoError(t, d.Install(newIncoming(t, d, newSnapshot(t, n)), uint64(n), 1, nil))
		require.NoError(t, setState(d, n+1))
		requireState(t, n+1, d.State)
	}
	close(stop)
	wait.Wait()
	require.NoError(t, d.Close())
}

// TestOpenFindsDamagedBase: it is told, and nothing changes.
func TestOpenFindsDamagedBase(t *testing.T) {
	for name, text := range map[string]string{
		"empty":       "",
		"cut off":     strings.TrimSuffix(string(base{state: "state-1"}.format()), "\n"),
		"other title": string(Identity{}.format()),
		"bad state":   string(base{state: "../state"}.format()),
		"no number":   string(base{state: "state-x"}.format()),
		"leading 0":   string(base{state: "state-01"}.format()),
		"no state":    string(base{state: "state-3"}.format()),
	} {
		disk := vfs.NewMem()
		fill(t, disk, "data")
		writeAll(t, disk, "data/base", []byte(text))
		before := tree(t, disk, "data")
		_, err := Open("data", smallData(disk))
		require.ErrorIs(t, err, gearsfs.ErrDamaged, name)
		require.Equal(t, before, tree(t, disk, "data"), name)
	}
}

func FuzzParseBase(f *testing.F) {
	f.Add(base{state: "state-1", index: 7, term: 3, hard: []byte("h")}.format())
	f.Add(base{state: "state"}.format())
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := parseBase(text)
		if err != nil {
			require.ErrorIs(t, err, gearsfs.ErrDamaged)
			return
		}
		again, err := parseBase(b.format())
		require.NoError(t, err)
		require.Equal(t, b, again)
	})
}
