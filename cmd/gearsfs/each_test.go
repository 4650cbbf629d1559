package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// tidyTemp gives the test a TMPDIR of its own, which must be empty in the end.
func tidyTemp(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() {
		left, err := filepath.Glob(filepath.Join(dir, "*"))
		assert.NoError(t, err)
		assert.Empty(t, left, "left in TMPDIR")
	})
}

// sh runs each on the stream `in` of :/q with a script as COMMAND.
func sh(t *testing.T, addr, flags, script string) outcome {
	t.Helper()
	args := append([]string{"each", ":/q", "in"}, strings.Fields(flags)...)
	return cli(t, addr, nil, append(args, "--", "sh", "-c", script, "sh", "{}")...)
}

func TestEach(t *testing.T) {
	tidyTemp(t)
	addr := startNode(t)
	runSteps(t, addr, []step{{line: "put :/q in -l --seal --type text", in: "a\nb c\n\n"}})
	got := sh(t, addr, "", `echo "$GEARSFS_KEY $GEARSFS_SEQ $GEARSFS_TYPE $GEARSFS_DELIVERIES [$1] [$(cat)] [$(cat $GEARSFS_IN/0)]"; echo e >&2`)
	assert.Equal(t, outcome{0, "in 1 text 1 [a] [a] [a]\nin 2 text 1 [b c] [b c] [b c]\nin 3 text 1 [] [] []\n", "e\ne\ne\n"}, got)
	runSteps(t, addr, []step{
		{line: "take :/q in", status: 4, errs: "sealed"},
		{line: "each :/q in -- false"},
	})
}

// Outputs go to every --put and to the keys of GEARSFS_OUT, whose files are
// gone for the next run; the last worker seals.
func TestEachOutputs(t *testing.T) {
	tidyTemp(t)
	addr := startNode(t)
	runSteps(t, addr, []step{{line: "put :/q in -l --seal", in: "1\n2\n"}})
	got := sh(t, addr, "--put :/r one --put :/s two --seal",
		`printf 'n%s\n' "$1"; [ $1 = 1 ] && printf x > $GEARSFS_OUT/side; ls $GEARSFS_OUT | wc -l >&2`)
	assert.Equal(t, outcome{0, "", "1\n0\n"}, got)
	runSteps(t, addr, []step{
		{line: "take :/r one -f --raw", out: "n1\nn2\n"},
		{line: "take :/s two -f --raw", out: "n1\nn2\n"},
		{line: "take :/r side -n all", out: "x\n"},
		{line: "each :/q in --put :/r one --put :/s three --seal -- true"}, // as after a worker that died before it sealed
		{line: "take :/s three", status: 4, errs: "sealed"},
	})
}

// The outputs by GEARSFS_OUT are sealed too, those of workers that are gone among
// them, when the input is drained and not before.
func TestEachSealsAllOutputs(t *testing.T) {
	tidyTemp(t)
	addr := startNode(t)
	runSteps(t, addr, []step{{line: "put :/q in -l --seal", in: "1\n2\n3\n"}, {line: "put :/r strange x"}})
	script := `echo out; printf $1 > $GEARSFS_OUT/side$1; printf $1 > $GEARSFS_OUT/all`
	for range 2 {
		assert.Equal(t, outcome{}, sh(t, addr, "-n 1 --put :/r out --seal", script))
	}
	runSteps(t, addr, []step{
		{line: "take :/r side1 -n all --raw", out: "1"},
		{line: "take :/r side1 --no-wait", status: 3, errs: "empty"},
		{line: "peek :/q in.outputs -n all --no-wait --raw", out: "/r\x00all/r\x00side1/r\x00side2"},
	})
	assert.Equal(t, outcome{}, sh(t, addr, "--put :/r out --seal", script))
	runSteps(t, addr, []step{
		{line: "take :/r side1 --no-wait", status: 4, errs: "sealed"},
		{line: "take :/r side2 -f --raw", out: "2"},
		{line: "take :/r side3 -f --raw", out: "3"},
		{line: "take :/r all -f --raw", out: "123"},
		{line: "take :/r out -f", out: "out\nout\nout\n"},
		{line: "put :/r strange y"},
		{line: "take :/q in.outputs --no-wait", status: 3, errs: "empty"},
		{line: "each :/q in --put :/r out --seal -- true"}, // one that comes later
	})
}

func TestEachOutputsOfASet(t *testing.T) {
	tidyTemp(t)
	addr := startNode(t)
	runSteps(t, addr, []step{
		{line: "put :/q in -l", in: "1\n2\n3\n"},
		{line: "put :/p in -l --seal", in: "a\nb\n"},
	})
	got := sh(t, addr, "--and :/p in --put :/r out -l --seal -j 2", `cat $GEARSFS_IN/0; echo; cat $GEARSFS_IN/1`)
	assert.Equal(t, outcome{}, got)
	lines := cli(t, addr, nil, "take", ":/r", "out", "-f").out
	assert.ElementsMatch(t, []string{"1", "a", "2", "b"}, strings.Fields(lines))
	runSteps(t, addr, []step{{line: "take :/q in --no-wait", out: "3\n"}})
}

func TestEachLines(t *testing.T) {
	tidyTemp(t)
	addr := startNode(t)
	runSteps(t, addr, []step{{line: "put :/q in x --seal"}})
	got := sh(t, addr, "--put :/q out -l", `printf 'a\n\nb'; printf 'c\nd\n' > $GEARSFS_OUT/side; : > $GEARSFS_OUT/none`)
	assert.Equal(t, outcome{}, got)
	runSteps(t, addr, []step{
		{line: "take :/q out -n all -0", out: "a\x00\x00b\x00"},
		{line: "take :/q side -n all -0", out: "c\x00d\x00"},
		{line: "take :/q none --no-wait", status: 3, errs: "empty"},
	})
}

// A command that fails, hangs, writes too much, closes its input, names bad
// keys, or can't be given its record.
func TestEachFailures(t *testing.T) {
	tidyTemp(t)
	addr := startNode(t)
	for name, c := range map[string]struct{ script, why string }{
		"status":    {`exit 3`, "exit status 3"},
		"signal":    {`kill -9 $$`, "exit status 137"},
		"hangs":     {`echo lost; sleep 100`, "--timeout"},
		"hangs too": {`trap "" TERM; sleep 100 & wait; sleep 100`, "--timeout"},
		"1 GiB":     {`head -c 1G /dev/zero`, "16 MiB"},
		"too much":  {`head -c 16777217 /dev/zero`, "16 MiB"},
		"two":       {`head -c 16777216 /dev/zero; head -c 1 /dev/zero > $GEARSFS_OUT/k`, "a transaction has room"},
		"lines":     {`yes | head -n 20000 > $GEARSFS_OUT/lines`, "lines"},
		"big file":  {`head -c 17M /dev/zero > $GEARSFS_OUT/k`, "k has more"},
		"bad key":   {`: > $GEARSFS_OUT/a,b`, "no key"},
		"directory": {`mkdir $GEARSFS_OUT/d`, "regular"},
		"link":      {`ln -s /etc/passwd $GEARSFS_OUT/l`, "regular"},
		"files":     {`for i in $(seq 64); do echo x > $GEARSFS_OUT/k$i; done`, "files"},
	} {
		t.Run(name, func(t *testing.T) {
			file := ":/" + strings.ReplaceAll(name, " ", "")
			runSteps(t, addr, []step{{line: "put " + file + " in x"}})
			args := []string{"each", file, "in", "-n", "1", "--tries", "1", "--timeout", "2s", "-l", "--put", file, "out", "--", "sh", "-c", c.script}
			if name != "lines" {
				args = append(args[:9:9], args[10:]...)
			}
			got := cli(t, addr, nil, args...)
			assert.Equal(t, 1, got.status, got.errs)
			assert.Contains(t, got.errs, c.why)
			assert.Contains(t, got.errs, "in.dead now")
			assert.Contains(t, got.errs, "died: 1 ")
			runSteps(t, addr, []step{
				{line: "take " + file + " in.dead --no-wait", out: "x\n"},
				{line: "take " + file + " in --no-wait", status: 3, errs: "empty"},
				{line: "take " + file + " out --no-wait", status: 3, errs: "empty"},
			})
		})
	}
}

// What is not the record's fault costs it no try.
func TestEachThatCantRun(t *testing.T) {
	tidyTemp(t)
	addr := startNode(t)
	script := filepath.Join(t.TempDir(), "c")
	require.NoError(t, os.WriteFile(script, []byte("#!/none/such\n"), 0o700))
	plain, garbage := filepath.Join(t.TempDir(), "plain"), filepath.Join(t.TempDir(), "garbage")
	require.NoError(t, os.WriteFile(plain, []byte("#!/bin/sh\n"), 0o600))
	require.NoError(t, os.WriteFile(garbage, []byte{1, 2, 3}, 0o700))
	runSteps(t, addr, []step{
		{line: "put :/q in x"},
		{line: "each :/q in -- /none/such", status: 127, errs: "COMMAND /none/such: no such file"},
		{line: "each :/q in -- no-such-command", status: 127, errs: "not found"},
		{line: "each :/q in --tries 1 -- " + script, status: 127, errs: "no such file"},
		{line: "each :/q in --tries 1 -- " + plain, status: 126, errs: "permission denied"},
		{line: "each :/q in --tries 1 -- " + garbage, status: 126, errs: "exec format error"},
		{line: "each :/q in --tries 1 -- " + filepath.Dir(plain), status: 126, errs: "COMMAND"},
		{line: "take :/q in --no-wait", out: "x\n"},
		{line: "put :/q out y --seal"},
		{line: "put :/q in x"},
		{line: "each :/q in --tries 1 --put :/q out -- true", status: 4, errs: "sealed"},
		{line: "take :/q in --no-wait", out: "x\n"},
	})
}

// A command that does not read its input has not failed for that, however large
// the input is.
func TestEachThatClosesItsInput(t *testing.T) {
	tidyTemp(t)
	addr := startNode(t)
	runSteps(t, addr, []step{
		{line: "put :/q in -", in: strings.Repeat("x", 15<<20)},
		{line: "put :/q in -", in: strings.Repeat("y", 1<<20)},
		{line: "put :/p in -l", in: "a\nb\n"},
	})
	got := cli(t, addr, nil, "each", ":/q", "in", "--and", ":/p", "in", "-n", "2", "--tries", "1", "--put", ":/q", "out", "--", "sh", "-c", "exec <&-; echo done")
	assert.Equal(t, outcome{}, got)
	runSteps(t, addr, []step{
		{line: "take :/q out -n all", out: "done\ndone\n"},
		{line: "take :/q in --no-wait", status: 3, errs: "empty"},
		{line: "take :/q in.dead --no-wait", status: 3, errs: "empty"},
	})
}

func TestEachRecordThatIsNoArgument(t *testing.T) {
	tidyTemp(t)
	addr := startNode(t)
	long := strings.Repeat("x", 200_000)
	runSteps(t, addr, []step{
		{line: "put :/q in -", in: "a\x00b"},
		{line: "put :/q in -", in: long},
	})
	got := sh(t, addr, "--tries 1 --no-wait", "true")
	assert.Equal(t, 1, got.status)
	assert.Contains(t, got.errs, "contains NUL")
	assert.Contains(t, got.errs, "too long for an argument")
	runSteps(t, addr, []step{
		{line: "take :/q in.dead -n all --raw", out: "a\x00b" + long},
		{line: "put :/q in -", in: long},
		{line: "each :/q in --no-wait -- wc -c", out: "200000\n"},
	})
}

// A failed record comes back later each time, and dies in the end.
func TestEachRetries(t *testing.T) {
	tidyTemp(t)
	addr := startNode(t)
	runSteps(t, addr, []step{{line: "put :/q in -l --seal", in: "good\nbad\n"}})
	began := time.Now()
	got := sh(t, addr, "--tries 3 --put :/q out -l", `[ $1 = good ] && echo $1`)
	assert.Equal(t, 1, got.status)
	assert.GreaterOrEqual(t, time.Since(began), retryFirst+2*retryFirst)
	assert.Contains(t, got.errs, "record 2 of in: exit status 1: it goes back, to be taken again in 1s\n")
	assert.Contains(t, got.errs, "in 2s\n")
	assert.Contains(t, got.errs, "it was tried 3 times and is in in.dead now\n")
	runSteps(t, addr, []step{
		{line: "take :/q out -n all", out: "good\n"},
		{line: "move :/q in.dead in", status: 4, errs: "sealed"},
		{line: "unseal :/q in"},
		{line: "move :/q in.dead in"},
		{line: "take :/q in --no-wait", out: "bad\n"},
		{line: "set :/q in --tries 1"},
		{line: "put :/q in x"},
		{line: "each :/q in --no-wait -- false", status: 1, errs: "in.dead"},
		{line: "put :/q in x"},
		{line: "each :/q in -n 1 --tries 0 -- false", errs: "goes back"},
	})
}

func TestRetryDelay(t *testing.T) {
	for deliveries, want := range map[uint32]time.Duration{
		0: time.Second, 1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 13: time.Hour, 1 << 31: time.Hour,
	} {
		assert.Equal(t, want, retryDelay(deliveries), "%d", deliveries)
	}
}

// Runs go on side by side, and what each says stays together.
func TestEachJobs(t *testing.T) {
	tidyTemp(t)
	addr := startNode(t)
	dir := t.TempDir()
	runSteps(t, addr, []step{{line: "put :/q in -l --seal", in: "1\n2\n3\n4\n"}})
	// Each waits for all the others.
	got := sh(t, addr, "-j 4", `echo begin $1 >&2; : > `+dir+`/$1; until [ -e `+dir+`/1 -a -e `+dir+`/2 -a -e `+dir+`/3 -a -e `+dir+`/4 ]; do sleep 0.01; done; echo end $1 >&2; echo $1`)
	assert.Equal(t, 0, got.status)
	for i := range 4 {
		assert.Contains(t, got.errs, fmt.Sprintf("begin %d\nend %d\n", i+1, i+1))
	}
	assert.ElementsMatch(t, []string{"1", "2", "3", "4"}, strings.Fields(got.out))
}

func TestEachCountAndRate(t *testing.T) {
	tidyTemp(t)
	addr := startNode(t)
	var lines strings.Builder
	for i := range 100 {
		fmt.Fprintln(&lines, i)
	}
	runSteps(t, addr, []step{
		{line: "put :/q in -l", in: lines.String()},
		{line: "each :/q in -n 3 -- cat", out: "012"},
		{line: "each :/q in -n 40 -j 3 -- true"},
	})
	began := time.Now()
	runSteps(t, addr, []step{
		{line: "each :/q in -n 4 --rate 10/s -- true"},
	})
	assert.GreaterOrEqual(t, time.Since(began), 300*time.Millisecond)
	runSteps(t, addr, []step{
		{line: "take :/q in", out: "47\n"},
		{line: "each :/q in --no-wait -j 2 -- true"},
		{line: "take :/q in --no-wait", status: 3, errs: "empty"},
	})
}

// What COMMAND leaves running in its process group is killed when it ends.
func TestEachKillsWhatIsLeftRunning(t *testing.T) {
	tidyTemp(t)
	addr := startNode(t)
	runSteps(t, addr, []step{{line: "put :/q in x --seal"}})
	began := time.Now()
	got := sh(t, addr, "--put :/q out -l", `sleep 1000 & echo $!`)
	assert.Equal(t, outcome{}, got)
	assert.Less(t, time.Since(began), 100*time.Second)
	pid := strings.TrimSpace(cli(t, addr, nil, "take", ":/q", "out").out)
	assert.Eventually(t, func() bool {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ")
	}, settleTimeout, settleTimeout/1000)
}

// background runs a command line and returns its app and outcome to come.
func background(t *testing.T, addr string, args ...string) (*app, <-chan outcome) {
	t.Helper()
	var out, errs bytes.Buffer
	a := bareApp(map[string]string{"GEARSFS_NODE": addr})
	a.out, a.errs = &out, &errs
	ended := make(chan outcome, 1)
	go func() {
		status := run(a, args)
		ended <- outcome{status, out.String(), errs.String()}
	}()
	return a, ended
}

// interrupt sends a command the signal that ^C sends, but for those that end
// the process.
func interrupt(t *testing.T, a *app) bool {
	t.Helper()
	f := a.onSignal.Load()
	require.NotNil(t, f)
	return (*f)(syscall.SIGINT)
}

// waitFile waits until a file exists.
func waitFile(t *testing.T, path string) {
	t.Helper()
	require.Eventually(t, func() bool { _, err := os.Stat(path); return err == nil }, 10*time.Second, time.Millisecond)
}

// The first signal lets what runs end, and starts no more.
func TestEachFirstSignal(t *testing.T) {
	tidyTemp(t)
	addr := startNode(t)
	dir := t.TempDir()
	runSteps(t, addr, []step{{line: "put :/q in -l", in: "1\n2\n"}})
	a, ended := background(t, addr, "each", ":/q", "in", "--put", ":/q", "out", "--",
		"sh", "-c", `: > `+dir+`/began; until [ -e `+dir+`/go ]; do sleep 0.01; done; cat`)
	waitFile(t, dir+"/began")
	assert.True(t, interrupt(t, a))
	assert.False(t, interrupt(t, a), "the second ends all")
	require.NoError(t, os.WriteFile(dir+"/go", nil, 0o600))
	assert.Equal(t, 130, (<-ended).status)
	runSteps(t, addr, []step{
		{line: "take :/q out -n all", out: "1\n"},
		{line: "take :/q in -n all", out: "2\n"},
	})
}

// A lease that is lost ends its run, and drops what it wrote.
func TestEachLosesItsLease(t *testing.T) {
	tidyTemp(t)
	addr := startNode(t)
	dir := t.TempDir()
	runSteps(t, addr, []step{{line: "put :/q in 1"}})
	_, ended := background(t, addr, "each", ":/q", "in", "-n", "1", "--put", ":/q", "out", "--",
		"sh", "-c", `: > `+dir+`/began; until [ -e `+dir+`/go ]; do sleep 0.01; done; cat`)
	waitFile(t, dir+"/began")
	runSteps(t, addr, []step{{line: "clear :/q in"}})
	require.NoError(t, os.WriteFile(dir+"/go", nil, 0o600))
	got := <-ended
	assert.Equal(t, 0, got.status)
	assert.Contains(t, got.errs, "the lease was lost")
	runSteps(t, addr, []step{{line: "take :/q out --no-wait", status: 3, errs: "empty"}})
}

// A keeper extends what is held, tells what is lost, once, and lets be what is
// dropped.
func TestKeeper(t *testing.T) {
	addr := startNode(t)
	m, err := dgm.Dial(t.Context(), addr, dgm.RemoteOptions{})
	require.NoError(t, err)
	defer m.Close()
	file := gearsfs.At("/q")
	_, err = m.Put(t.Context(), dgm.Put{File: file, Key: "k", Records: make([]gearsfs.NewRecord, 3)})
	require.NoError(t, err)
	const leaseFor = 600 * time.Millisecond
	records, err := m.Take(t.Context(), dgm.Take{File: file, Keys: []gearsfs.Key{"k"}, Max: 3, Lease: true, LeaseFor: leaseFor, ByReceipt: true})
	require.NoError(t, err)
	require.Len(t, records, 3)
	k := startKeeper(m, leaseFor, false)
	var mu sync.Mutex
	lost := map[int]int{}
	var held []*kept
	for i, r := range receipts(records) {
		held = append(held, k.keep([]gearsfs.Receipt{r}, time.Now(), func() {
			mu.Lock()
			defer mu.Unlock()
			lost[i]++
		}))
	}
	k.drop(held[2]) // runs out
	require.Eventually(t, func() bool {
		info, err := m.Stream(t.Context(), file, "k")
		return err == nil && info.Records == 1 && info.Leased == 2
	}, 10*time.Second, time.Millisecond)
	require.NoError(t, m.Settle(t.Context(), dgm.Settle{Receipts: receipts(records[:1])}))
	require.Eventually(t, func() bool { mu.Lock(); defer mu.Unlock(); return lost[0] == 1 }, 10*time.Second, time.Millisecond)
	assert.False(t, k.drop(held[0]))
	assert.True(t, k.drop(held[1]), "still held")
	k.close()
	mu.Lock()
	defer mu.Unlock()
	assert.Equal(t, map[int]int{0: 1}, lost)
}

// A strict keeper counts a lease as lost before it could be another's, when its
// node does not answer.
func TestStrictKeeper(t *testing.T) {
	const leaseFor = 300 * time.Millisecond
	began := time.Now()
	k := startKeeper(silent{}, leaseFor, true)
	defer k.close()
	lost := make(chan struct{})
	k.keep([]gearsfs.Receipt{{Fence: 1}}, began, func() { close(lost) })
	<-lost
	assert.GreaterOrEqual(t, time.Since(began), leaseFor/2)
	assert.Less(t, time.Since(began), leaseFor)
}

// silent is a node that never answers.
type silent struct{ dgm.Manager }

func (silent) Settle(ctx context.Context, _ dgm.Settle) error {
	<-ctx.Done()
	return ctx.Err()
}

// Nobody reads what the runs write: that ends the worker, and costs no tries.
func TestEachWithoutReader(t *testing.T) {
	tidyTemp(t)
	addr := startNode(t)
	for _, jobs := range []string{"1", "2"} {
		runSteps(t, addr, []step{{line: "put :/q in x"}})
		read, write, err := os.Pipe()
		require.NoError(t, err)
		require.NoError(t, read.Close())
		var errs bytes.Buffer
		a := bareApp(map[string]string{"GEARSFS_NODE": addr})
		a.out, a.errs = write, &errs
		assert.Equal(t, exitSignal+int(syscall.SIGPIPE), run(a, []string{"each", ":/q", "in", "-j", jobs, "--tries", "1", "--", "cat"}), errs.String())
		require.NoError(t, write.Close())
		runSteps(t, addr, []step{{line: "take :/q in --no-wait", out: "x\n"}})
	}
}
