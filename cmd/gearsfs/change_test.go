package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestIDs(t *testing.T) {
	runSteps(t, startNode(t), []step{
		{line: "put :/q k one --id a -o json", out: `{"first":1,"last":1,"count":1}` + "\n"},
		{line: "put :/q k one --id a -o json", out: `{"first":1,"last":1,"count":1}` + "\n"},
		{line: "put :/q k -l --id b", in: "x\ny\n"},
		{line: "put :/q k -l --id b -o json", in: "x\ny\nz\n", out: `{"first":4,"last":4,"count":3}` + "\n"},
		{line: "put :/q k -0 --id b -o json", in: "x\x00y\x00z\x00", out: `{"first":0,"last":0,"count":3}` + "\n"},
		{line: "put :/q k other --id b/3"},
		{line: "put :/q other other --id b/3"},
		{line: "take :/q k -n all", out: "one\nx\ny\nz\n"},
		{line: "put :/q k one --id a"},
		{line: "take :/q k --no-wait", status: 3, errs: "empty"},
		{line: "put :/q k x --id= ", status: 2, errs: "--id is empty"},
	})
}

func TestTypes(t *testing.T) {
	runSteps(t, startNode(t), []step{
		{line: "put :/q k one --type text"},
		{line: "set :/q k --type json"},
		{line: "put :/q k two --type text", status: 1, errs: "json"},
		{line: "put :/q k two", status: 1, errs: "json"},
		{line: "put :/q k {} --type json"},
		{line: "set :/q k --type="},
		{line: "put :/q k three"},
		{line: "take :/q k -n all", out: "one\n{}\nthree\n"},
	})
}

func TestUpdate(t *testing.T) {
	runSteps(t, startNode(t), []step{
		{line: "update :/c k one --if-seq 0"},
		{line: "update :/c k two --if-seq 0", status: 3, errs: "record 0 is not the newest"},
		{line: "update :/c k two -o json --type t", out: `{"seq":2}` + "\n"},
		{line: "update :/c k - --if-seq 2", in: "three\n"},
		{line: "peek :/c k -n all", out: "three\n"},
		{line: "put :/c k four"},
		{line: "update :/c k five"},
		{line: "peek :/c k -n all", out: "five\n"},
		{line: "seal :/c k"},
		{line: "update :/c k six", status: 4, errs: "sealed"},
	})
}

func TestMoveRecords(t *testing.T) {
	runSteps(t, startNode(t), []step{
		{line: "move :/q a b", status: 1, errs: "no such file"},
		{line: "put :/q a -l", in: "1\n2\n3\n4\n"},
		{line: "put :/q b 0"},
		{line: "move :/q a b -n 2 -o json", out: `{"count":2}` + "\n"},
		{line: "move :/q a b"},
		{line: "move :/q a b", status: 3, errs: "empty"},
		{line: "peek :/q b -n all", out: "0\n1\n2\n3\n4\n"},
		{line: "move :/q b a -n 7", status: 3, errs: "5 of 7"},
		{line: "peek :/q a -n all", out: "0\n1\n2\n3\n4\n"},
	})
}

func TestCopyFile(t *testing.T) {
	runSteps(t, startNode(t), []step{
		{line: "put :/q a -l", in: "1\n2\n"},
		{line: "put :/q data bytes"},
		{line: "cp :/q :/r"},
		{line: "cat :/r", out: "bytes"},
		{line: "peek :/r a -n all", out: "1\n2\n"},
		{line: "take :/q a", out: "1\n"},
		{line: "cp :/q :/r"},
		{line: "peek :/r a -n all", out: "2\n"},
		{line: "mkdir :/d"},
		{line: "cp :/q :/d"},
		{line: "peek :/d/q a -n all", out: "2\n"},
		{line: "cp :/none :/d", status: 1, errs: "no such file"},
		{line: "cp :/d :/e", status: 1, errs: "directory"},
		{line: "cp :/q :/none/q", status: 1, errs: "no such file"},
	})
}

func TestSettings(t *testing.T) {
	addr := startNode(t)
	runSteps(t, addr, []step{
		{line: "put :/q k x"},
		{line: "set :/q k --age 1d --full refuse --tries 7 --type= --id-window 2h --append-only --bytes 1M"},
		{line: "set :/q k", out: "records 0\nbytes 1048576\nage 24h0m0s\nfull refuse\ntries 7\ntype \nid-window 2h0m0s\n" +
			"append-only true\nstore disk\nsealed false\n"},
		{line: "set :/q k -o json", out: `{"records":0,"bytes":1048576,"age_seconds":86400,"full":"refuse","tries":7,"type":"",` +
			`"id_window_seconds":7200,"append_only":true,"store":"disk","sealed":false}` + "\n"},
		{line: "clear :/q k", status: 1, errs: "append-only"},
		{line: "set :/q k --append-only=false --records 2 --full drop-oldest --age 0"},
		{line: "put :/q k -l", in: "1\n2\n3\n"},
		{line: "peek :/q k -n all", out: "2\n3\n"},
		{line: "streams :/q", out: "" +
			"KEY  RECORDS  BYTES  HEAD  TAIL  WAITING  LEASED  DISCARDED  SEALED\n" +
			"k    2        2      3     5     0        0       2          no\n"},
		{line: "set :/q k --full refuse"},
		{line: "put :/q k x", status: 3, errs: "full"},
		{line: "set :/q m --store memory"},
		{line: "put :/q m x"},
		{line: "take :/q m", out: "x\n"},
		{line: "set :/q k --store memory", status: 1, errs: "record"},
	})
}

func TestDelayed(t *testing.T) {
	addr := startNode(t)
	soon := time.Now().Add(1500 * time.Millisecond)
	began := time.Now()
	runSteps(t, addr, []step{
		{line: "put :/q k later --delay 300ms"},
		{line: "put :/q k now"},
		{line: "put :/q k last --at " + soon.UTC().Format(time.RFC3339Nano) + " --seal"},
		{line: "take :/q k -n all", out: "now\n"},
		{line: "take :/q k", out: "later\n"},
		{line: "take :/q k --no-wait", status: 3, errs: "empty"},
		{line: "take :/q k -f", out: "last\n"},
	})
	assert.GreaterOrEqual(t, time.Since(began), time.Second)
}

func TestParseTime(t *testing.T) {
	now := time.Date(2030, 5, 6, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"@1136214245":               time.Unix(1136214245, 0),
		"2031-01-02T03:04:05Z":      time.Date(2031, 1, 2, 3, 4, 5, 0, time.UTC),
		"2031-01-02T03:04":          time.Date(2031, 1, 2, 3, 4, 0, 0, time.UTC),
		"2031-01-02 03:04:05":       time.Date(2031, 1, 2, 3, 4, 5, 0, time.UTC),
		"2031-01-02":                time.Date(2031, 1, 2, 0, 0, 0, 0, time.UTC),
		"12:30":                     time.Date(2030, 5, 6, 12, 30, 0, 0, time.UTC),
		"11:30":                     time.Date(2030, 5, 7, 11, 30, 0, 0, time.UTC),
		"23:59:59":                  time.Date(2030, 5, 6, 23, 59, 59, 0, time.UTC),
		"2031-01-02T03:04:05+02:00": time.Date(2031, 1, 2, 1, 4, 5, 0, time.UTC),
	} {
		got, err := parseTime(text, now)
		require.NoError(t, err, text)
		assert.True(t, want.Equal(got), "%s: %s", text, got)
	}
	for _, bad := range []string{"", "@", "@-1", "@99999999999999", "tomorrow", "25:00", "2031-13-01", "1969-01-01", "3000-01-01"} {
		_, err := parseTime(bad, now)
		assert.Error(t, err, bad)
	}
}

// lent takes with --lease and returns what -o json shows.
func lent(t *testing.T, addr string, args ...string) map[string]any {
	t.Helper()
	got := cli(t, addr, nil, append([]string{"take", ":/q", "k", "-o", "json", "--lease"}, args...)...)
	require.Equal(t, 0, got.status, got.errs)
	var record map[string]any
	require.NoError(t, json.Unmarshal([]byte(got.out), &record))
	return record
}

func TestReceipts(t *testing.T) {
	addr := startNode(t)
	runSteps(t, addr, []step{{line: "put :/q k -l", in: "1\n2\n3\n"}})
	first := lent(t, addr, "1m")
	assert.Equal(t, "1", first["data"])
	assert.NotEmpty(t, first["deadline"])
	receipt := first["receipt"].(string)
	wrong := receipt[:len(receipt)-1] + string('0'+(receipt[len(receipt)-1]-'0'+1)%10)
	runSteps(t, addr, []step{
		{line: "put :/r k x"},
		{line: "ack :/r k " + receipt, status: 1, errs: "not the file"},
		{line: "ack :/q other " + receipt, status: 1, errs: "gone"},
		{line: "ack :/q k " + wrong, status: 1, errs: "gone"},
		{line: "extend :/q k " + receipt + " 2m"},
		{line: "ack :/q k " + receipt},
		{line: "ack :/q k " + receipt, status: 1, errs: "gone"},
		{line: "extend :/q k " + receipt + " 2m", status: 1, errs: "gone"},
	})
	second := lent(t, addr, "1m")
	assert.Equal(t, "2", second["data"])
	runSteps(t, addr, []step{
		{line: "nack :/q k " + second["receipt"].(string)},
		{line: "peek :/q k", out: "2\n"},
	})
	second = lent(t, addr, "1m")
	assert.EqualValues(t, 2, second["deliveries"])
	runSteps(t, addr, []step{
		{line: "nack :/q k " + second["receipt"].(string) + " 300ms"},
		{line: "take :/q k", out: "3\n"},
		{line: "take :/q k --no-wait", status: 3, errs: "empty"},
		{line: "take :/q k", out: "2\n"},
	})
	// A lease that runs out gives the record back, and after --tries to the dead.
	runSteps(t, addr, []step{{line: "put :/q k 4"}})
	lent(t, addr, "200ms", "--tries", "2")
	again := lent(t, addr, "200ms", "--tries", "2")
	assert.EqualValues(t, 2, again["deliveries"])
	assert.Equal(t, "4\n", cli(t, addr, nil, "take", ":/q", "k.dead").out) // waits for it
	runSteps(t, addr, []step{
		{line: "ack :/q k " + again["receipt"].(string), status: 1, errs: "gone"},
		{line: "take :/q k --no-wait", status: 3, errs: "empty"},
	})
}

// Several receipts are settled at once, of a stream on disk as of one in memory.
func TestSeveralReceipts(t *testing.T) {
	addr := startNode(t)
	for _, store := range []string{"disk", "memory"} {
		file := ":/" + store
		runSteps(t, addr, []step{{line: "put " + file + " other x"}, {line: "set " + file + " k --store " + store}})
		runSteps(t, addr, []step{{line: "put " + file + " k -l", in: "1\n2\n3\n4\n"}})
		got := cli(t, addr, nil, "take", file, "k", "-n", "all", "--lease", "1h", "-o", "json")
		require.Equal(t, 0, got.status, got.errs)
		var receipts []string
		for line := range strings.Lines(got.out) {
			var record struct{ Receipt string }
			require.NoError(t, json.Unmarshal([]byte(line), &record))
			receipts = append(receipts, record.Receipt)
		}
		require.Len(t, receipts, 4)
		runSteps(t, addr, []step{
			{line: "extend " + file + " k " + strings.Join(receipts, " ") + " 2h"},
			{line: "extend " + file + " k " + strings.Join(receipts, " "), status: 2, errs: "by nothing"},
			{line: "ack " + file + " k " + receipts[0] + " " + receipts[1]},
			{line: "ack " + file + " k " + receipts[2] + " " + receipts[1], status: 1, errs: "gone"},
			{line: "nack " + file + " k " + receipts[2] + " " + receipts[3] + " 50ms"},
			{line: "take " + file + " k -n 2", out: "3\n4\n"},
			{line: "take " + file + " k --no-wait", status: 3, errs: "empty"},
		})
	}
}

func TestUntilAcked(t *testing.T) {
	addr := startNode(t)
	_, putting := background(t, addr, "put", ":/q", "k", "x", "--until-acked")
	require.Eventually(t, func() bool { return cli(t, addr, nil, "peek", ":/q", "k", "--no-wait").status == 0 }, 10*time.Second, time.Millisecond)
	select {
	case got := <-putting:
		t.Fatal("returned before it was taken:", got)
	case <-time.After(20 * time.Millisecond):
	}
	receipt := lent(t, addr, "1m")["receipt"].(string)
	select {
	case got := <-putting:
		t.Fatal("returned before it was acknowledged:", got)
	case <-time.After(20 * time.Millisecond):
	}
	runSteps(t, addr, []step{{line: "put :/q k behind"}, {line: "ack :/q k " + receipt}})
	assert.Equal(t, outcome{}, <-putting)
	runSteps(t, addr, []step{{line: "clear :/q k"}, {line: "put :/q k y --id y"}, {line: "clear :/q k"}, {line: "put :/q k y --id y --until-acked", status: 1, errs: "1 cleared"}})
}

// What became of records that nobody acknowledged is said.
func TestUntilAckedOtherwise(t *testing.T) {
	for _, store := range []string{"disk", "memory"} {
		t.Run(store, func(t *testing.T) {
			addr := startNode(t)
			key := func(name, settings string) {
				t.Helper()
				runSteps(t, addr, []step{{line: "put :/q other x"}, {line: "set :/q " + name + " --store " + store + settings}})
			}
			start := func(name, in string) <-chan outcome {
				t.Helper()
				var out, errs bytes.Buffer
				a := bareApp(map[string]string{"GEARSFS_NODE": addr})
				a.in, a.out, a.errs = strings.NewReader(in), &out, &errs
				ended := make(chan outcome, 1)
				go func() {
					status := run(a, []string{"put", ":/q", name, "-l", "--until-acked"})
					ended <- outcome{status, out.String(), errs.String()}
				}()
				require.Eventually(t, func() bool {
					return strings.Contains(cli(t, addr, nil, "waits", "-o", "json").out, `"`+name+`"`)
				}, 10*time.Second, time.Millisecond)
				return ended
			}
			expect := func(ended <-chan outcome, why string) {
				t.Helper()
				got := <-ended
				assert.Equal(t, 1, got.status)
				assert.Contains(t, got.errs, "not acknowledged: "+why)
			}
			key("c", "")
			putting := start("c", "1\n2\n3\n")
			runSteps(t, addr, []step{{line: "take :/q c", out: "1\n"}, {line: "clear :/q c"}})
			expect(putting, "2 cleared")

			key("d", "")
			putting = start("d", "1\n2\n")
			runSteps(t, addr, []step{{line: "each :/q d -n 1 --tries 1 -- false", status: 1, errs: "died"}, {line: "take :/q d", out: "2\n"}})
			expect(putting, "1 dead (in d.dead)")

			key("o", " --records 2 --full drop-oldest")
			putting = start("o", "1\n2\n")
			runSteps(t, addr, []step{{line: "put :/q o 3"}, {line: "put :/q o 4"}})
			expect(putting, "2 discarded")

			key("r", "")
			putting = start("r", "1\n")
			runSteps(t, addr, []step{{line: "drop :/q r"}})
			expect(putting, "1 gone with the stream")

			key("u", "")
			putting = start("u", "1\n")
			runSteps(t, addr, []step{{line: "update :/q u new"}})
			expect(putting, "1 cleared")

			if store == "disk" {
				putting = start("m", "1\n2\n")
				runSteps(t, addr, []step{{line: "move :/q m n -n 1"}, {line: "take :/q m", out: "2\n"}})
				expect(putting, "1 moved")
			}
			key("f", "")
			putting = start("f", "1\n")
			runSteps(t, addr, []step{{line: "rm :/q"}})
			expect(putting, "removed with the file")
		})
	}
}

func TestCursor(t *testing.T) {
	addr := startNode(t)
	path := filepath.Join(t.TempDir(), "c")
	at := " --cursor " + path
	runSteps(t, addr, []step{
		{line: "put :/q k -l", in: "1\n2\n3\n4\n5\n"},
		{line: "peek :/q k --after 1" + at, out: "2\n"},
		{line: "peek :/q k --after 1" + at, out: "3\n"},
		{line: "peek :/q k --after end -n all" + at, out: "4\n5\n"},
		{line: "peek :/q k -f --no-wait" + at},
		{line: "peek :/q k --no-wait" + at, status: 3, errs: "empty"},
		{line: "put :/q k -l", in: "6\n7\n"},
		{line: "peek :/q k -f --no-wait" + at, out: "6\n7\n"},
		{line: "peek :/q k --cursor=", status: 2, errs: "--cursor is empty"},
	})
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, "7\n", string(text))
	for _, bad := range []string{"", "x", "7\n8\n", " 7\n", "007\n"} {
		require.NoError(t, os.WriteFile(path, []byte(bad), 0o600))
		runSteps(t, addr, []step{{line: "peek :/q k" + at, status: 1, errs: "does not hold a seq"}})
	}
	runSteps(t, addr, []step{
		{line: "peek :/q k --cursor /none/c", status: 1, errs: "cursor: /none/c can't be written: no such file"},
		{line: "peek :/q k --cursor /proc/c --exec false", status: 1, errs: "cursor: /proc/c can't be written: "},
	})
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*"))
	require.NoError(t, err)
	assert.Empty(t, left)
}

func TestExec(t *testing.T) {
	tidyTemp(t)
	addr := startNode(t)
	runSteps(t, addr, []step{{line: "put :/q k -l --type t", in: "1\n2\n3\n4\n"}})
	run := func(status int, out, errs string, args ...string) {
		t.Helper()
		got := cli(t, addr, nil, args...)
		assert.Equal(t, status, got.status, "%v: %s", args, got.errs)
		assert.Equal(t, out, got.out, args)
		assert.Contains(t, got.errs, errs, args)
	}
	cursor := filepath.Join(t.TempDir(), "c")
	run(0, "k 1 t 1 1\n", "", "take", ":/q", "k", "--exec", `echo $GEARSFS_KEY $GEARSFS_SEQ $GEARSFS_TYPE $GEARSFS_DELIVERIES $(cat)`)
	run(1, "2", "exit status 4", "take", ":/q", "none,k", "--exec", `cat; exit 4`)
	run(0, "23", "", "peek", ":/q", "k", "-n", "2", "--after", "1", "--exec", "cat")
	run(1, "23", "record 3: exit status 1", "peek", ":/q", "k", "-n", "all", "--cursor", cursor, "--exec", `cat; [ $GEARSFS_SEQ != 3 ]`)
	run(0, "34", "", "peek", ":/q", "k", "-n", "all", "--cursor", cursor, "--exec", "cat")
	run(0, "342", "", "take", ":/q", "k", "-n", "3", "--exec", "cat") // 2 comes back after a second
	run(3, "", "empty", "take", ":/q", "k", "--no-wait", "--exec", "cat")
	run(3, "", "within --wait", "take", ":/q", "k", "--wait", "50ms", "--exec", "cat")
	runSteps(t, addr, []step{{line: "put :/q k -l --seal", in: "a\nb\n"}})
	run(1, "", "k.dead now", "take", ":/q", "k", "-f", "--tries", "1", "--exec", "grep -q a")
	run(0, "", "", "take", ":/q", "k", "-f", "--exec", "cat")
	run(4, "", "sealed", "take", ":/q", "k", "--exec", "cat")
	run(2, "", "--exec is empty", "take", ":/q", "k", "--exec", "")
	runSteps(t, addr, []step{{line: "take :/q k.dead", out: "b\n"}})
}

func TestNearMisses(t *testing.T) {
	addr := startNode(t)
	runSteps(t, addr, []step{
		{line: "put :/q count 1"},
		{line: "take :/q cuont --wait 200ms", status: 3, errs: "nothing came within --wait: is the key count meant?"},
		{line: "peek :/q cuont --wait 200ms", status: 3, errs: "is the key count meant?"},
		{line: "take :/q strange --wait 200ms", status: 3, errs: "nothing came within --wait\n"},
	})
	got := cli(t, addr, nil, "waits", "-o", "json")
	assert.Equal(t, outcome{}, got)
	assert.NotContains(t, strings.ToLower(got.out), "count")
}

func TestQuota(t *testing.T) {
	runSteps(t, startNode(t), []step{
		{line: "mkdir :/d"},
		{line: "quota :/d", status: 1, errs: "no quota is set"},
		{line: "quota :/d --bytes 1K --inodes 2"},
		{line: "put :/d/q k hello"},
		{line: "quota :/d", out: "bytes 1024\nbytes-used 5\ninodes 2\ninodes-used 2\ncounting false\n"},
		{line: "put :/d/q k -", in: strings.Repeat("x", 1020), status: 1, errs: "used up"},
		{line: "put :/d/r k one", status: 1, errs: "gearsfs quota DIR"},
		{line: "take :/d/q k", out: "hello\n"},
		{line: "put :/d/q k -", in: strings.Repeat("x", 1020)},
		{line: "quota :/d --inodes 0"},
		{line: "put :/d/r k one"},
		{line: "quota :/d -o json", out: `{"bytes":1024,"bytes_used":1023,"inodes":0,"inodes_used":3,"counting":false}` + "\n"},
		{line: "quota :/d/q --bytes 1", status: 1, errs: "not a directory"},
		{line: "quota :/missing", status: 1, errs: "no such file"},
		{line: "quota :/d --inodes many", status: 2, errs: "not a number of inodes"},
		{line: "quota :/d --bytes 1 --remove", status: 2, errs: "exclude each other"},
		{line: "quota :/d --remove"},
		{line: "quota :/d --remove", status: 1, errs: "no quota is set"},
		{line: "put :/d/q k -", in: strings.Repeat("x", 1020)},
	})
}
