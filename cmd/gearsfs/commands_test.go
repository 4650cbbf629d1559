package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/cmd/internal/node"
	"github.com/gearsfs/gearsfs/cmd/internal/units"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// startNode starts a node in this process and returns its address.
func startNode(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cli") // short, for the socket's path
	require.NoError(t, err)
	n, err := node.Start(t.Context(), node.Config{Data: filepath.Join(dir, "data"), Name: "n"})
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, n.Close())
		assert.NoError(t, os.RemoveAll(dir))
	})
	return n.Address()
}

// outcome is what a command did.
type outcome struct {
	status    int
	out, errs string
}

// gearsfs runs one command line with the node at addr as the default.
func cli(t *testing.T, addr string, in io.Reader, args ...string) outcome {
	t.Helper()
	var out, errs bytes.Buffer
	a := bareApp(map[string]string{"GEARSFS_NODE": addr})
	a.in, a.out, a.errs = in, &out, &errs
	status := run(a, args)
	return outcome{status, out.String(), errs.String()}
}

// step is one command line, written with blanks between the words; ADDR in it
// is the node's address.
type step struct {
	line   string
	in     string
	status int
	out    string
	errs   string // a part of what standard error must hold; "" is nothing at all
}

func runSteps(t *testing.T, addr string, steps []step) {
	t.Helper()
	for _, s := range steps {
		line := strings.ReplaceAll(s.line, "ADDR", addr)
		got := cli(t, addr, strings.NewReader(s.in), strings.Fields(line)...)
		require.Equal(t, s.status, got.status, "%s: %s", s.line, got.errs)
		assert.Equal(t, s.out, got.out, s.line)
		if s.errs == "" {
			assert.Empty(t, got.errs, s.line)
		} else {
			assert.Contains(t, got.errs, s.errs, s.line)
		}
	}
}

func TestPutTakePeek(t *testing.T) {
	runSteps(t, startNode(t), []step{
		{line: "put :/q k one"},
		{line: "put :/q k -", in: "two\nlines\n"},
		{line: "put :/q k -l -o json", in: "a\n\nb", out: `{"first":3,"last":5,"count":3}` + "\n"},
		{line: "put :/q k -0", in: "x\ny\x00z\x00"},
		{line: "put :/q k -l", in: ""},
		{line: "put :/q k -- -l"},
		{line: "peek :/q k", out: "one\n"},
		{line: "peek :/q k --last", out: "-l\n"},
		{line: "peek :/q k --after 1", out: "two\nlines\n"},
		{line: "peek :/q k --after 2 -n 2 --raw", out: "a"},
		{line: "peek :/q k --after 8 --no-wait", status: 3, errs: "the stream is empty behind record 8\n"},
		{line: "peek :/q k --after end --wait 10ms", status: 3, errs: "within --wait"},
		{line: "peek :/q k -n all -0", out: "one\x00two\nlines\n\x00a\x00\x00b\x00x\ny\x00z\x00-l\x00"},
		{line: "peek :/q k -f --no-wait --after 6", out: "z\n-l\n"},
		{line: "take :/q k", out: "one\n"},
		{line: "take :/q missing,k", out: "two\nlines\n"},
		{line: "take :/q k -n 3", out: "a\n\nb\n"},
		{line: "take :/q k -f --no-wait", out: "x\ny\nz\n-l\n"},
		{line: "take :/q k --no-wait", status: 3, errs: "empty"},
		{line: "take :/q k -n all", status: 3, errs: "empty"},
		{line: "put :/q k last"},
		{line: "take :/q k -n 2 --no-wait", status: 3, out: "last\n", errs: "empty"},
	})
}

func TestTakeSaysWhatItWaitsFor(t *testing.T) {
	runSteps(t, startNode(t), []step{
		{line: "take :/none k --wait 300ms", status: 3, errs: "there is no file :/none yet"},
		{line: "put :/q count 1"},
		{line: "take :/q cuont --wait 300ms", status: 3, errs: `no stream "cuont" yet`},
		{line: "peek :/q cuont --wait 300ms", status: 3, errs: `no stream "cuont" yet`},
		{line: "take :/none/q k", status: 1, errs: "no such file"},
		{line: "peek :/a\x02b k --wait 50ms", status: 3, errs: "there is no file :/a?b yet"},
		{line: "take :/none k --no-wait", status: 3, errs: "empty: there is no such file yet\n"},
		{line: "peek :/none k -n all", status: 3, errs: "empty: there is no such file yet\n"},
		{line: "take :/q cuont --no-wait", status: 3, errs: "empty: there is none of that name yet (gearsfs streams"},
		{line: "take :/q cuont,also -n all", status: 3, errs: "empty: there is none of that name yet (gearsfs streams"},
		{line: "peek :/q cuont --no-wait", status: 3, errs: "empty: there is none of that name yet (gearsfs streams"},
		{line: "take :/q count", out: "1\n"},
		{line: "take :/q cuont,count --no-wait", status: 3, errs: "the stream is empty\n"},
		{line: "take :/q data --no-wait", status: 3, errs: "the stream is empty\n"},
	})
}

func TestSeal(t *testing.T) {
	runSteps(t, startNode(t), []step{
		{line: "put :/q k one --seal"},
		{line: "put :/q k two", status: 4, errs: "sealed"},
		{line: "put :/q k -l", in: "two\n", status: 4, errs: "(0 records are on disk)"},
		{line: "peek :/q k -f", out: "one\n"},
		{line: "take :/q k -f", out: "one\n"},
		{line: "take :/q k", status: 4, errs: "sealed"},
		{line: "take :/q k -f"},
		{line: "unseal :/q k"},
		{line: "put :/q k -l --seal", in: ""},
		{line: "take :/q k -f"},
		{line: "unseal :/q k"},
		{line: "put :/q k three"},
		{line: "clear :/q k"},
		{line: "take :/q k --no-wait", status: 3, errs: "empty"},
		{line: "drop :/q k"},
		{line: "streams :/q", out: "KEY  RECORDS  BYTES  HEAD  TAIL  WAITING  LEASED  DISCARDED  SEALED\n"},
		{line: "drop :/q data", status: 1, errs: "data"},
		{line: "clear :/q k", status: 1, errs: "k: the file has no stream \"k\""},
		{line: "unseal :/q k", status: 1, errs: "k: the file has no stream \"k\""},
		{line: "drop :/q k"},
		{line: "streams :/q", out: "KEY  RECORDS  BYTES  HEAD  TAIL  WAITING  LEASED  DISCARDED  SEALED\n"},
	})
}

func TestLimits(t *testing.T) {
	addr := startNode(t)
	runSteps(t, addr, []step{
		{line: "put :/q k 0"},
		{line: "set :/q k --records 3"},
		{line: "set :/q k --bytes 1K"},
		{line: "set :/q k", out: "records 3\nbytes 1024\nage 0\nfull wait\ntries 0\ntype \nid-window 24h0m0s\n" +
			"append-only false\nstore disk\nsealed false\n"},
		{line: "put :/q k -l --no-wait", in: "1\n2\n3\n4\n", status: 3, errs: "(2 records are on disk)"},
		{line: "put :/q k x --wait 10ms", status: 3, errs: "no room came within --wait"},
		{line: "streams :/q", out: "" +
			"KEY  RECORDS  BYTES  HEAD  TAIL  WAITING  LEASED  DISCARDED  SEALED\n" +
			"k    3        3      1     4     0        0       0          no\n"},
		{line: "take :/q k -n all", out: "0\n1\n2\n"},
		{line: "put :/q k -l --no-wait", in: "1\n2\n3\n4\n", status: 3, errs: "(3 records are on disk)"},
		{line: "set :/q k --records 0"},
		{line: "put :/q k -l --no-wait", in: "4\n"},
	})
	// More lines than fit go in as there is room.
	feeding := make(chan outcome)
	go func() {
		var lines strings.Builder
		for i := range 100 {
			fmt.Fprintln(&lines, i)
		}
		feeding <- cli(t, addr, strings.NewReader(lines.String()), "put", ":/q", "k", "-l", "--seal")
	}()
	assert.Equal(t, 0, cli(t, addr, nil, "set", ":/q", "k", "--records", "7").status)
	got := cli(t, addr, nil, "take", ":/q", "k", "-f")
	assert.Equal(t, outcome{}, <-feeding)
	assert.Equal(t, 104, strings.Count(got.out, "\n"))
	assert.True(t, strings.HasSuffix(got.out, "98\n99\n"), got.out)
}

func TestRecordTooLarge(t *testing.T) {
	addr := startNode(t)
	big := bytes.Repeat([]byte("x"), gearsfs.RecordBytesMax+1)
	got := cli(t, addr, bytes.NewReader(big), "put", ":/q", "k", "-")
	assert.Equal(t, 1, got.status)
	got = cli(t, addr, io.MultiReader(strings.NewReader("a\nb\n"), bytes.NewReader(big)), "put", ":/q", "k", "-l")
	assert.Equal(t, 1, got.status)
	assert.Contains(t, got.errs, "record 3 of the input")
	assert.Contains(t, got.errs, "(2 records are on disk)")
	runSteps(t, addr, []step{{line: "take :/q k -n all", out: "a\nb\n"}})
}

// A take whose output fails gives back what it could not write.
func TestTakeGivesBackWhatItCouldNotWrite(t *testing.T) {
	addr := startNode(t)
	runSteps(t, addr, []step{{line: "put :/q k -l", in: "one\ntwo\nthree\n"}})
	var out narrow
	out.n, out.err = len("one\ntw"), io.ErrShortWrite
	var errs bytes.Buffer
	a := bareApp(map[string]string{"GEARSFS_NODE": addr})
	a.out, a.errs = &out, &errs
	assert.Equal(t, 1, run(a, []string{"take", ":/q", "k", "-n", "3"}))
	assert.Contains(t, errs.String(), "standard output")
	runSteps(t, addr, []step{{line: "take :/q k -n all -f", status: 2, errs: "exclude each other"}, {line: "take :/q k -n all", out: "two\nthree\n"}})
}

func TestManyRecordsKeepTheirOrder(t *testing.T) {
	addr := startNode(t)
	var lines strings.Builder
	for i := range 3*takeBatchMax + 17 {
		fmt.Fprintln(&lines, i)
	}
	runSteps(t, addr, []step{
		{line: "put :/q k -l", in: lines.String()},
		{line: "peek :/q k -n all", out: lines.String()},
		{line: "take :/q k -n all", out: lines.String()},
	})
}

func TestTree(t *testing.T) {
	runSteps(t, startNode(t), []step{
		{line: "mkdir :/d/e", status: 1, errs: "no such file"},
		{line: "mkdir -p :/d/e :/d/e"},
		{line: "mkdir :/d", status: 1, errs: "exists"},
		{line: "put :/d/f data one"},
		{line: "put :/d/f data two"},
		{line: "cat :/d/f", out: "onetwo"},
		{line: "mkdir -p :/d/f/g", status: 1, errs: "not a directory"},
		{line: "ls :/d", out: "e\nf\n"},
		{line: "ls :/d/f", out: ":/d/f\n"},
		{line: "ls --node ADDR d", out: "e\nf\n"},
		{line: "cat :/d", status: 1, errs: "is a directory"},
		{line: "cat :/d/none :/d/f", status: 1, out: "onetwo", errs: "no such file"},
		{line: "mv :/d/f :/g/", status: 1, errs: "no directory :/g/"},
		{line: "mkdir :/d/a"},
		{line: "mv :/d/a :/d/b/"},
		{line: "rm -r :/d/b"},
		{line: "mv :/d/f :/g"},
		{line: "mv :/g :/d/e"},
		{line: "cat :/d/e/g", out: "onetwo"},
		{line: "put :/h data x"},
		{line: "mv :/h :/d/e/g"},
		{line: "cat :/d/e/g", out: "x"},
		{line: "mv :/d/e/g :/none/g", status: 1, errs: ": :/none/g: no such file"},
		{line: "mv :/none :/d", status: 1, errs: ": :/none: no such file"},
		{line: "rm :/d", status: 1, errs: "-r"},
		{line: "rm -r :/d"},
		{line: "rm :/d", status: 1, errs: "no such file"},
		{line: "rm :/", status: 1, errs: "no name"},
		{line: "ls", out: ""},
	})
}

func TestListAsJSON(t *testing.T) {
	addr := startNode(t)
	runSteps(t, addr, []step{
		{line: "mkdir :/d"},
		{line: "put :/d/f data one"},
		{line: "put :/d/g data four"},
	})
	for _, c := range []struct{ line, want string }{
		{"ls -o json :/d", "/d/f 3\n/d/g 4\n"},
		{"ls -o json :/", "/d 4096\n"},
		{"ls -o json -l :/d/f", "/d/f 3\n"},
	} {
		got := cli(t, addr, nil, strings.Fields(c.line)...)
		require.Equal(t, 0, got.status, got.errs)
		var shown strings.Builder
		for line := range strings.Lines(got.out) {
			var e attrJSON
			require.NoError(t, json.Unmarshal([]byte(line), &e))
			fmt.Fprintln(&shown, *e.Path, e.Size)
		}
		assert.Equal(t, c.want, shown.String(), c.line)
	}
}

func TestRemotes(t *testing.T) {
	a, b := startNode(t), startNode(t)
	runSteps(t, a, []step{
		{line: "remote ls", out: "NAME  ADDRESS\n"},
		{line: "put b:/q k one", status: 1, errs: `no remote "b"`},
		{line: "remote add b " + b},
		{line: "remote add b/c " + b, status: 2, errs: "not a remote's name"},
		{line: "remote add c nonsense", status: 2, errs: "host:port"},
		{line: "remote ls", out: "NAME  ADDRESS\nb     " + b + "\n"},
		{line: "put b:/q k one"},
		{line: "ls", out: ""},
		{line: "mv b:/q :/q", status: 1, errs: "another node"},
		{line: "ls b:/", out: "q\n"},
		{line: "take --node " + a + " b:/q k", out: "one\n"},
		{line: "rm b:/q"},
		{line: "remote rm b"},
		{line: "remote rm b", status: 1, errs: "no remote"},
	})
}

func TestStatusAndWaits(t *testing.T) {
	addr := startNode(t)
	got := cli(t, addr, nil, "status", "-o", "json")
	require.Equal(t, 0, got.status, got.errs)
	var status map[string]any
	require.NoError(t, json.Unmarshal([]byte(got.out), &status))
	assert.Equal(t, "n", status["node"])
	assert.Equal(t, "main", status["volume"])
	assert.Equal(t, "leader", status["role"])

	m, err := dgm.Dial(t.Context(), addr, dgm.RemoteOptions{})
	require.NoError(t, err)
	defer m.Close()
	_, err = m.Put(t.Context(), dgm.Put{File: gearsfs.At("/q"), Key: "cuont", Records: []gearsfs.NewRecord{{}}})
	require.NoError(t, err)
	taking := make(chan outcome)
	go func() { taking <- cli(t, addr, nil, "take", ":/q", "count") }()
	require.Eventually(t, func() bool {
		waits, err := m.Waits(t.Context())
		return err == nil && len(waits) > 0
	}, settleTimeout, settleTimeout/1000)
	assert.Contains(t, cli(t, addr, nil, "waits").out, "is cuont meant?")
	assert.Equal(t, 0, cli(t, addr, nil, "put", ":/q", "count", "x").status)
	assert.Equal(t, "x\n", (<-taking).out)
}

func TestNodes(t *testing.T) {
	addr := startNode(t)
	got := cli(t, addr, nil, "nodes", "-o", "json")
	require.Equal(t, 0, got.status, got.errs)
	var node map[string]any
	require.NoError(t, json.Unmarshal([]byte(got.out), &node))
	assert.Equal(t, "n", node["node"])
	assert.Equal(t, "1", node["member"])
	assert.Equal(t, "leader", node["role"])
	assert.Equal(t, true, node["reachable"])
	assert.Contains(t, node["address"], addr)

	got = cli(t, addr, nil, "nodes")
	require.Equal(t, 0, got.status, got.errs)
	lines := strings.Split(got.out, "\n")
	require.Len(t, lines, 3)
	assert.Regexp(t, "^NODE +ROLE +STATE +TERM +COMMIT +APPLIED +LAG +BYTES +ADDRESS +NOTE$", lines[0])
	assert.Regexp(t, "^n +leader +up +[0-9]+ ", lines[1])
	assert.Contains(t, cli(t, addr, nil, "status").out, "\nleader n\n")

	runSteps(t, addr, []step{
		{line: "nodes transfer other", status: 1, errs: `no node "other": gearsfs nodes lists`},
		{line: "nodes remove other", status: 1, errs: `no node "other": gearsfs nodes lists`},
		{line: "nodes remove n", status: 1, errs: "transfer"},
		{line: "nodes remove", status: 2, errs: "too few"},
		{line: "nodes tranfser n", status: 2, errs: "transfer?"},
		{line: "nodes verify n", status: 2, errs: "too many"},
		{line: "nodes --node unix:/none/sock", status: 1, errs: "unreachable"},
		{line: "fsck --node x:1 --data d", status: 2, errs: "exclude"},
		{line: "fsck --data /none", status: 1, errs: "no GearsFS data"},
	})
}

func TestUnreachable(t *testing.T) {
	addr := "unix:" + filepath.Join(t.TempDir(), "none")
	runSteps(t, addr, []step{
		{line: "put :/q k x", status: 1, errs: "unreachable"},
		{line: "put --node nonsense q k x", status: 2, errs: "host:port"},
	})
}

// TestWaitBoundsTheNodesAnswer: a node that is stopped is waited for as long as
// for a record.
func TestWaitBoundsTheNodesAnswer(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s")) // nobody accepts
	require.NoError(t, err)
	defer l.Close()
	const errs = "no answer from the node within --wait"
	runSteps(t, "unix:"+l.Addr().String(), []step{
		{line: "take :/q k --wait 1ms", status: exitNotNow, errs: errs},
		{line: "take :/q k --wait 1ms --exec true", status: exitNotNow, errs: errs},
		{line: "peek :/q k --wait 1ms", status: exitNotNow, errs: errs},
		{line: "put :/q k one --wait 1ms", status: exitNotNow, errs: errs},
		{line: "hold :/q k --wait 1ms -- true", status: exitNotNow, errs: errs},
	})
}

// TestWaitOutlastsTheDial: with --wait a node that does not answer is asked again
// until that is over, without it once.
func TestWaitOutlastsTheDial(t *testing.T) {
	a := bareApp(nil)
	a.errs = io.Discard
	asked := 0
	a.dial = func(context.Context, string) (dgm.Manager, error) {
		if asked++; asked%3 != 0 {
			return nil, fmt.Errorf("dial: %w", context.DeadlineExceeded)
		}
		return nil, gearsfs.ErrInvalid
	}
	_, err := a.manager(t.Context(), "unix:/s")
	require.ErrorIs(t, err, gearsfs.ErrNoNode)
	require.Equal(t, 1, asked)
	ctx, cancel := waitContext(t.Context(), units.Duration{Given: true, Value: time.Hour}, "no answer")
	defer cancel()
	_, err = a.manager(ctx, "unix:/s")
	require.NotErrorIs(t, err, gearsfs.ErrNoNode)
	require.Equal(t, 3, asked)
}

// TestInForeground: what is started in the background does not go there again.
func TestInForeground(t *testing.T) {
	for _, flag := range []string{"--background", "--background=true", "--background=1", "--background=T"} {
		require.Equal(t, []string{"mount", "--node", "a", "m"}, inForeground([]string{"mount", "--node", "a", flag, "m"}), flag)
	}
	require.Equal(t, []string{"mount", "--", "--background"}, inForeground([]string{"mount", "--background", "--", "--background"}))
}

func TestWordcount(t *testing.T) {
	addr := startNode(t)
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	require.NoError(t, os.WriteFile(one, []byte("b a b\nc"), 0o600))
	require.NoError(t, os.WriteFile(two, []byte("a a a b\n"), 0o600))
	runSteps(t, addr, []step{
		{line: "put :/three data x"},
		{line: "wordcount " + one, out: "1 4 7 " + one + "\n"},
		{line: "wordcount -", in: "x y\n", out: "      1       2       4 -\n"},
		{line: "wordcount --top 2 " + one + " " + two + " :/three", out: fmt.Sprintf(
			" 1  4  7 %s\n 1  4  8 %s\n 0  1  1 :/three\n 2  9 16 total\n 4 a\n 3 b\n", one, two)},
		{line: "wordcount /none", status: 1, errs: "no such file"},
		{line: "wordcount " + dir, status: 1, errs: "is a directory"},
		{line: "wordcount --worker", status: 2, errs: "--node"},
		{line: "wordcount --top -1 -", status: 2, errs: "--top"},
		{line: "wordcount", status: 2, errs: "too few"},
	})
}

// Every command says what it does, with an example, and refuses flags that it
// does not have.
func TestEveryCommandHasHelp(t *testing.T) {
	var each func(c *cobra.Command)
	each = func(c *cobra.Command) {
		args := strings.Fields(c.CommandPath())[1:]
		got := cli(t, "", nil, append(args, "--help")...)
		assert.Equal(t, 0, got.status, c.CommandPath())
		assert.Contains(t, got.out, "Examples:\n", c.CommandPath())
		assert.NotEmpty(t, c.Short, c.CommandPath())
		for line := range strings.Lines(c.Long) {
			assert.Less(t, len(line), 104, "%s: %s", c.CommandPath(), line)
		}
		got = cli(t, "", nil, append(args, "--lease-of-life")...)
		assert.Equal(t, 2, got.status, c.CommandPath())
		assert.Contains(t, got.errs, "unknown flag", c.CommandPath())
		for _, sub := range c.Commands() {
			each(sub)
		}
	}
	each(newApp().rootCommand())
}

// What stands behind -- is COMMAND's, flags too.
func TestFlagsStandBeforeTheCommand(t *testing.T) {
	for _, name := range []string{"each", "hold"} {
		got := cli(t, "", nil, name, "--help")
		assert.Regexp(t, `\n  gearsfs `+name+` .* \[flags\] -- COMMAND \[ARG\]\.\.\.\n`, got.out)
	}
}

// A key may be any bytes but a few, 0xff too; its row stands in the table's columns.
func TestTableOfAnyKeys(t *testing.T) {
	addr := startNode(t)
	for _, key := range []string{"\xff\xfe", "é", "two words"} {
		require.Zero(t, cli(t, addr, nil, "put", ":/q", key, "x").status)
	}
	lines := strings.Split(cli(t, addr, nil, "streams", ":/q").out, "\n")
	assert.Equal(t, "two words  1        1      1     2     0        0       0          no", lines[1])
	assert.Equal(t, "é          1        1      1     2     0        0       0          no", lines[2])
	assert.Equal(t, "\xff\xfe         1        1      1     2     0        0       0          no", lines[3])
}

func TestUnknownUsage(t *testing.T) {
	runSteps(t, "", []step{
		{line: "", status: 2, errs: "which command"},
		{line: "tkae :/q k", status: 2, errs: "take?"},
		{line: "each :/q k true", status: 2, errs: "follows --"},
		{line: "each :/q k --", status: 2, errs: "no COMMAND"},
		{line: "each :/q k -j 5000 -- true", status: 2, errs: "at most 4096"},
		{line: "each :/q k x -- true", status: 2, errs: "too many"},
		{line: "each :/q --and k -- true", status: 2, errs: "FILE KEY"},
		{line: "each :/q k --put :/q -- true", status: 2, errs: "FILE KEY"},
		{line: "each :/q k -j 0 -- true", status: 2, errs: "from 1 on"},
		{line: "each :/q k --rate 0/s -- true", status: 2, errs: "not a rate"},
		{line: "each :/q k --timeout 0 -- true", status: 2, errs: "--timeout"},
		{line: "each :/q k --seal -- true", status: 2, errs: "--put"},
		{line: "hold :/q k -- ", status: 2, errs: "no COMMAND"},
		{line: "hold :/q k -n 16385 -- true", status: 2, errs: "at most"},
		{line: "hold :/q k --wait 1s --no-wait -- true", status: 2, errs: "exclude each other"},
		{line: "take :/q k --lease 1m", status: 2, errs: "-o json"},
		{line: "take :/q k --lease 0 -o json", status: 2, errs: "needs a time"},
		{line: "take :/q k --tries 3", status: 2, errs: "--tries"},
		{line: "take :/q k --exec true -o json", status: 2, errs: "exclude each other"},
		{line: "put :/q k x --delay 1s --at 12:00", status: 2, errs: "exclude each other"},
		{line: "put :/q k x --at nonsense", status: 2, errs: "not a time"},
		{line: "put :/q k x --id " + strings.Repeat("x", 251), status: 2, errs: "--id"},
		{line: "put :/q k x --type " + strings.Repeat("x", 251), status: 2, errs: "--type"},
		{line: "put :/q k -l --id " + strings.Repeat("x", 240), status: 2, errs: "--id"},
		{line: "update :/q k", status: 2, errs: "too few"},
		{line: "update :/q k x --if-seq -1", status: 2, errs: "not a seq"},
		{line: "move :/q k k", status: 2, errs: "the same stream"},
		{line: "ack :/q k 1.2.3", status: 2, errs: "not a receipt"},
		{line: "ack :/q k 1.2.3.4 1s", status: 2, errs: "not a receipt"},
		{line: "extend :/q k 1.2.3.4", status: 2, errs: "too few"},
		{line: "extend :/q k 1.2.3.4 0", status: 2, errs: "by nothing"},
		{line: "nack :/q k 1.2.3.4 soon", status: 2, errs: "not a duration"},
		{line: "set :/q k --full never", status: 2, errs: "drop-oldest"},
		{line: "set :/q k --store tape", status: 2, errs: "disk nor memory"},
		{line: "remote", status: 2, errs: "add, rm or ls"},
		{line: "remote mv", status: 2, errs: "no command"},
		{line: "take :/q k --wait 1s --no-wait", status: 2, errs: "exclude each other"},
		{line: "peek :/q k --after 1 --last", status: 2, errs: "exclude each other"},
		{line: "completion tcsh", status: 2, errs: "tcsh"},
		{line: "mount", status: 2, errs: "too few"},
		{line: "mount -o nonsense /m", status: 2, errs: "nonsense"},
		{line: "mount --data= /m", status: 2, errs: "--data: DIR is empty"},
		{line: "put --node= :/q k x", status: 2, errs: "ADDR is empty"},
		{line: "status --node=", status: 2, errs: "ADDR is empty"},
		{line: "put :/q k -5", status: 2, errs: "an argument that begins with - follows --"},
		{line: "put :/q k --five", status: 2, errs: "unknown flag: --five: an argument that begins with - follows --"},
		{line: "put :/q a/b x", status: 2, errs: `KEY "a/b": a key must not contain '/'`},
		{line: "take :/q a,..", status: 2, errs: `KEY "..": a key must not be`},
		{line: "each :/q k --tries x -- true", status: 2, errs: `"x" is not a number from 0 on`},
	})
}
