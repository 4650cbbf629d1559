package mount_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

func init() {
	children["put"] = putAndLinger
	children["nonblock"] = takeNonblocking
}

// putAndLinger writes into a put file without closing it, says so, and waits.
func putAndLinger(args []string) error {
	f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteString("half a rec"); err != nil {
		return err
	}
	fmt.Println("written")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// takeNonblocking reads a record without waiting for one.
func takeNonblocking(args []string) error {
	fd, err := unix.Open(args[0], unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	buf := make([]byte, 100)
	n, err := unix.Read(fd, buf)
	fmt.Printf("%q %v\n", buf[:max(n, 0)], err)
	return nil
}

func TestPutByShell(t *testing.T) {
	f := newFixture(t)
	for _, test := range []struct {
		name, script string
		want         []string
	}{
		{"truncating echo", `echo job > $PUT`, []string{"job\n"}},
		{"appending echo", `echo job >> $PUT`, []string{"job\n"}},
		{"printf without newline", `printf job > $PUT`, []string{"job"}},
		{"nothing", `: > $PUT`, nil},
		{"an external program", `/bin/echo job > $PUT`, []string{"job\n"}},
		{"a file", `seq 3 | cp /dev/stdin $PUT`, []string{"1\n2\n3\n"}},
		{"a group is one record", `{ /bin/echo a; /bin/echo b; echo c; } > $PUT`, []string{"a\nb\nc\n"}},
		{"an appending group is one each", `{ /bin/echo a; echo b; } >> $PUT`, []string{"a\n", "b\n"}},
		{"a subshell", `( /bin/echo a; echo b ) > $PUT`, []string{"a\nb\n"}},
		{"a pipeline", `seq 2 | cat > $PUT`, []string{"1\n2\n"}},
		{"dd", `seq 2 | dd of=$PUT status=none`, []string{"1\n2\n"}},
		{"tee", `echo job | tee $PUT >/dev/null`, []string{"job\n"}},
		{"tee -a", `echo job | tee -a $PUT >/dev/null`, []string{"job\n"}},
		{"a descriptor kept open", `exec 3> $PUT; echo a >&3; exec 3>&-; echo b > $PUT`, []string{"a\n", "b\n"}},
		{"a child that outlives the opener", `(exec 3> $PUT; (read line; echo $line late >&3) <fifo & exec 3>&-); echo go > fifo; wait
			until grep -q 'records 1' $INFO; do sleep 0.01; done`, []string{"go late\n"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := strings.ReplaceAll(test.name, " ", "-")
			f.mustShell(t, "mkfifo -m 600 fifo 2>/dev/null; PUT=.gears/streams/"+file+"/jobs/put INFO=.gears/streams/"+file+"/jobs/info; "+test.script)
			if test.want == nil {
				_, err := os.Stat(f.path(file))
				require.ErrorIs(t, err, os.ErrNotExist, "looking makes nothing")
				return
			}
			require.Equal(t, test.want, f.records(t, "/"+file, "jobs"))
		})
	}
}

func TestPutIsDurableAndSeen(t *testing.T) {
	f := newFixture(t)
	// The kernel knows that there is no such file; the put must tell it.
	_, err := os.Stat(f.path("q"))
	require.ErrorIs(t, err, os.ErrNotExist)
	f.mustShell(t, "echo one >> .gears/streams/q/data/put")
	eventually(t, "the new file is seen", func() bool {
		data, err := os.ReadFile(f.path("q"))
		return err == nil && string(data) == "one\n"
	})
	open, err := os.Open(f.path("q"))
	require.NoError(t, err)
	defer open.Close()
	f.mustShell(t, "echo two >> .gears/streams/q/data/put")
	eventually(t, "the file's new size is seen", func() bool {
		info, err := open.Stat()
		require.NoError(t, err)
		return info.Size() == 8
	})
	st, err := f.other.Status(t.Context())
	require.NoError(t, err)
	require.GreaterOrEqual(t, st.Durable, st.Applied-2)
}

func TestPutLimits(t *testing.T) {
	f := newFixture(t)
	big := bytes.Repeat([]byte("x"), gearsfs.RecordBytesMax)
	put := f.control("q", "jobs", "put")
	require.NoError(t, os.WriteFile(put, big, 0))
	require.Len(t, f.records(t, "/q", "jobs")[0], len(big))
	require.ErrorIs(t, os.WriteFile(put, append(big, 'x'), 0), unix.EMSGSIZE)
	require.Len(t, f.records(t, "/q", "jobs"), 1, "nothing of a record that is too large is put")

	// An appending write that the kernel would split is refused, not split.
	a, err := os.OpenFile(put, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	defer a.Close()
	for offset := range 64 { // however it lies in memory
		_, err := a.Write(big[offset*64 : offset*64+3<<20])
		require.ErrorIs(t, err, unix.EMSGSIZE)
	}
	_, err = a.Write(big[:1<<20-4096])
	require.NoError(t, err)
	require.Len(t, f.records(t, "/q", "jobs"), 2)
}

func TestPutErrors(t *testing.T) {
	f := newFixture(t)
	yes := true
	f.put(t, "/q", "jobs", "x")
	require.NoError(t, f.other.Configure(t.Context(), gearsfs.At("/q"), "jobs", dgm.StreamChange{Seal: &yes}))
	_, err := f.shell(t, "echo x > .gears/streams/q/jobs/put")
	require.ErrorContains(t, err, "not permitted", "a sealed stream")
	_, err = f.shell(t, "echo x > .gears/streams/q/jo,bs/put")
	require.Error(t, err, "a bad key")
	_, err = f.shell(t, "echo x > .gears/streams/no/dir/q/jobs/put")
	require.Error(t, err, "a missing directory")
	_, err = f.shell(t, "echo x > .gears/streams/q/jobs/other")
	require.Error(t, err, "a name that means nothing")
	_, err = f.shell(t, "cat .gears/streams/q/jobs/put")
	require.Error(t, err, "reading put")
	_, err = f.shell(t, "echo x > .gears/streams/q/jobs/take")
	require.Error(t, err, "writing take")
	for _, script := range []string{"rm .gears/streams/q/jobs/put", "rmdir .gears", "mkdir .gears/x", "mv q .gears/q", "mv .gears x",
		"ln -s x .gears/y", "touch .gears/z", "chmod 777 .gears/status", "setfattr -n user.gears.path -v x ."} {
		_, err := f.shell(t, script)
		require.Error(t, err, script)
	}
}

func TestPutWaitsForRoom(t *testing.T) {
	f := newFixture(t)
	f.put(t, "/q", "jobs", "first")
	require.NoError(t, f.other.Configure(t.Context(), gearsfs.At("/q"), "jobs", dgm.StreamChange{Limits: &gearsfs.Limits{Records: 1}}))
	for _, redirect := range []string{">", ">>"} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		cmd := exec.CommandContext(ctx, "bash", "-c", "echo second "+redirect+" "+f.control("q", "jobs", "put"))
		require.NoError(t, cmd.Start())
		exited := make(chan error, 1)
		go func() { exited <- cmd.Wait() }()
		select {
		case <-exited:
			t.Fatal("the put did not wait for room")
		case <-time.After(50 * time.Millisecond):
		}
		require.Len(t, f.records(t, "/q", "jobs"), 1)
		_, err := f.other.Take(t.Context(), dgm.Take{File: gearsfs.At("/q"), Keys: []gearsfs.Key{"jobs"}})
		require.NoError(t, err)
		require.NoError(t, <-exited)
		require.Equal(t, []string{"second\n"}, f.records(t, "/q", "jobs"))
		cancel()
	}
	fd, err := unix.Open(f.control("q", "jobs", "put"), unix.O_WRONLY|unix.O_NONBLOCK, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte("x"))
	require.ErrorIs(t, err, unix.EAGAIN)
}

func TestWriterThatDiesCommitsNothing(t *testing.T) {
	f := newFixture(t)
	env, err := exec.LookPath("env")
	require.NoError(t, err)
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGHUP} {
		cmd := child("put", f.control("q", "jobs", "put"))
		// What who runs the tests ignores, as nohup does, is not ignored by what it runs.
		cmd.Path, cmd.Args = env, append([]string{"env", "--default-signal", cmd.Path}, cmd.Args[1:]...)
		in, err := cmd.StdinPipe()
		require.NoError(t, err)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		_, err = io.ReadFull(out, make([]byte, 8))
		require.NoError(t, err)
		require.NoError(t, cmd.Process.Signal(sig))
		require.Error(t, cmd.Wait())
		in.Close() // Wait has closed it
	}
	f.mustShell(t, "echo whole > .gears/streams/q/jobs/put") // its release comes behind the others'
	require.Equal(t, []string{"whole\n"}, f.records(t, "/q", "jobs"))

	cmd := child("put", f.control("q", "jobs", "put"))
	cmd.Stdin = strings.NewReader("")
	require.NoError(t, cmd.Run(), "one that exits commits")
	require.Equal(t, []string{"whole\n", "half a rec"}, f.records(t, "/q", "jobs"))
}

func TestTakeByCat(t *testing.T) {
	f := newFixture(t)
	big := strings.Repeat("0123456789", 300_000)
	f.put(t, "/q", "jobs", "one\n", "", big, "three\n")
	require.Equal(t, "one\n", f.mustShell(t, "cat .gears/streams/q/jobs/peek"))
	require.Equal(t, "one\n", f.mustShell(t, "cat .gears/streams/q/jobs/take"))
	require.Equal(t, "", f.mustShell(t, "cat .gears/streams/q/jobs/take"))
	require.Equal(t, big, f.mustShell(t, "cat .gears/streams/q/jobs/take"))
	require.Equal(t, "three\n", f.mustShell(t, "read line < .gears/streams/q/jobs/take; echo $line"))
	eventually(t, "what was read to its last byte is acknowledged at the close", func() bool {
		info := f.info(t, "/q", "jobs")
		return info.Records == 0 && info.Leased == 0
	})
	out, err := child("nonblock", f.control("q", "jobs", "take")).Output()
	require.NoError(t, err)
	require.Equal(t, "\"\" resource temporarily unavailable\n", string(out))

	yes := true
	require.NoError(t, f.other.Configure(t.Context(), gearsfs.At("/q"), "jobs", dgm.StreamChange{Seal: &yes}))
	require.Equal(t, "", f.mustShell(t, "cat .gears/streams/q/jobs/take .gears/streams/q/jobs/peek"), "sealed and drained is the end")
}

// TestTakeSettles reads a record in parts and closes at each point.
func TestTakeSettles(t *testing.T) {
	f := newFixture(t)
	f.put(t, "/q", "jobs", "0123456789")
	read := func(bytes int, atEnd bool) {
		take, err := os.Open(f.control("q", "jobs", "take"))
		require.NoError(t, err)
		buf := make([]byte, 4)
		for left := bytes; left > 0; {
			n, err := take.Read(buf[:min(4, left)])
			require.NoError(t, err)
			left -= n
		}
		if atEnd {
			_, err := take.Read(buf)
			require.Equal(t, io.EOF, err)
			require.Zero(t, f.info(t, "/q", "jobs").Leased, "settled before end of file is answered")
			f.put(t, "/q", "jobs", "next")
			_, err = take.Read(buf)
			require.Equal(t, io.EOF, err, "an open takes one record")
		} else if bytes > 0 {
			require.EqualValues(t, 1, f.info(t, "/q", "jobs").Leased)
		}
		require.NoError(t, take.Close())
	}
	for _, bytes := range []int{0, 3, 9} {
		read(bytes, false)
		eventually(t, "a record that was not read to its end goes back", func() bool {
			info := f.info(t, "/q", "jobs")
			return info.Records == 1 && info.Leased == 0
		})
	}
	read(10, true)
	require.Equal(t, []string{"next"}, f.records(t, "/q", "jobs"))
}

// waitFor returns when n operations wait in the volume.
func (f fixture) waitFor(t *testing.T, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d operations wait", n), func() bool {
		waits, err := f.other.Waits(context.Background())
		require.NoError(t, err)
		return len(waits) == n
	})
}

func TestWaitingCatIsFreed(t *testing.T) {
	f := newFixture(t)
	f.put(t, "/q", "jobs", "x")
	f.mustShell(t, "cat .gears/streams/q/jobs/take")
	for _, name := range []string{"take", "peek"} {
		for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL, syscall.SIGTERM} {
			cmd := exec.Command("cat", f.control("q", "jobs", name))
			require.NoError(t, cmd.Start())
			f.waitFor(t, 1)
			began := time.Now()
			require.NoError(t, cmd.Process.Signal(sig))
			require.Error(t, cmd.Wait())
			require.Less(t, time.Since(began), time.Second, "%v frees a waiting %s at once", sig, name)
			f.waitFor(t, 0)
		}
	}
	cmd := exec.Command("cat", f.control("q", "jobs", "take"))
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	f.waitFor(t, 1)
	f.put(t, "/q", "jobs", "late")
	data, err := io.ReadAll(out)
	require.NoError(t, err)
	require.NoError(t, cmd.Wait())
	require.Equal(t, "late", string(data), "what the others gave up waiting for is lost to nobody")
	require.Zero(t, f.info(t, "/q", "jobs").Leased)
}

// TestKilledTakersLoseNothing kills readers while records arrive.
func TestKilledTakersLoseNothing(t *testing.T) {
	f := newFixture(t)
	const records = 60
	var wg sync.WaitGroup
	var mu sync.Mutex
	clean, seen := map[string]int{}, map[string]bool{}
	for range 4 {
		wg.Go(func() {
			for round := 0; ; round++ {
				cmd := exec.Command("cat", f.control("q", "jobs", "take"))
				var out bytes.Buffer
				cmd.Stdout = &out
				if err := cmd.Start(); err != nil {
					t.Error(err)
					return
				}
				if round%2 == 0 {
					time.AfterFunc(time.Duration(round%7)*time.Millisecond, func() { cmd.Process.Kill() })
				}
				err := cmd.Wait()
				if err == nil && out.Len() == 0 {
					return // the end
				}
				mu.Lock()
				seen[out.String()] = true
				if err == nil {
					clean[out.String()]++
				}
				mu.Unlock()
			}
		})
	}
	for i := range records {
		f.put(t, "/q", "jobs", fmt.Sprint(i))
	}
	yes := true
	require.NoError(t, f.other.Configure(t.Context(), gearsfs.At("/q"), "jobs", dgm.StreamChange{Seal: &yes}))
	wg.Wait()
	for i := range records {
		require.LessOrEqual(t, clean[fmt.Sprint(i)], 1, "record %d was taken twice", i)
		require.True(t, seen[fmt.Sprint(i)], "record %d was lost", i)
	}
	info := f.info(t, "/q", "jobs")
	require.Zero(t, info.Records+info.Leased)
}

func TestTakeOfMissingFileWaits(t *testing.T) {
	f := newFixture(t)
	require.NoError(t, os.MkdirAll(f.path("a", "b"), 0o755))
	cmd := exec.Command("cat", f.path("a", "b", ".gears", "streams", "new", "key", "take"))
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	f.waitFor(t, 1)
	require.Contains(t, f.mustShell(t, "cat .gears/waits"), "/a/b/new")
	f.put(t, "/a/b/new", "key", "made")
	data, err := io.ReadAll(out)
	require.NoError(t, err)
	require.NoError(t, cmd.Wait())
	require.Equal(t, "made", string(data))
}

func TestRemovedFileEndsItsWaits(t *testing.T) {
	f := newFixture(t)
	f.mustShell(t, "touch q")
	cmd := exec.Command("cat", f.control("q", "jobs", "take"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	require.NoError(t, cmd.Start())
	f.waitFor(t, 1)
	require.NoError(t, os.Remove(f.path("q")))
	require.Error(t, cmd.Wait())
	require.Contains(t, stderr.String(), "No such file")
}

func TestManyWaitingReaders(t *testing.T) {
	f := newFixture(t)
	const readers = 200
	cats := make([]*exec.Cmd, readers)
	for i := range cats {
		cats[i] = exec.Command("cat", f.control("q", "jobs", "take"))
		require.NoError(t, cats[i].Start())
	}
	f.waitFor(t, readers)
	require.NoError(t, os.WriteFile(f.path("other"), []byte("x"), 0o644))
	var slowest time.Duration
	for range 200 {
		began := time.Now()
		_, err := os.ReadFile(f.path("other"))
		require.NoError(t, err)
		slowest = max(slowest, time.Since(began))
	}
	require.Less(t, slowest, time.Second, "waiting readers slow nobody")
	for i := range readers {
		f.put(t, "/q", "jobs", fmt.Sprint(i))
	}
	for _, c := range cats {
		require.NoError(t, c.Wait())
	}
	require.Zero(t, f.info(t, "/q", "jobs").Records)
}

func TestAll(t *testing.T) {
	f := newFixture(t)
	var want strings.Builder
	for i := range 1000 {
		f.put(t, "/q", "jobs", fmt.Sprintf("record %d\n", i))
		fmt.Fprintf(&want, "record %d\n", i)
	}
	require.Equal(t, want.String(), f.mustShell(t, "cat .gears/streams/q/jobs/all"))
	require.Equal(t, want.String(), f.mustShell(t, "dd if=.gears/streams/q/jobs/all bs=7 status=none"))
	require.Equal(t, "", f.mustShell(t, "cat .gears/streams/q/none/all .gears/streams/none/none/all"))
	large := strings.Repeat("x", 5<<20)
	for range 5 {
		f.put(t, "/big", "jobs", large)
	}
	require.Equal(t, "26214400\n", f.mustShell(t, "cat .gears/streams/big/jobs/all | wc -c"))
}

func TestListings(t *testing.T) {
	f := newFixture(t)
	require.NoError(t, os.MkdirAll(f.path("dir", "sub"), 0o755))
	f.put(t, "/dir/q", "jobs", "x")
	f.put(t, "/dir/q", "done", "y")
	require.NoError(t, os.WriteFile(f.path("dir", "plain"), []byte("z"), 0o644))
	require.Equal(t, "dir\n", f.mustShell(t, "ls -A"), ".gears is not listed")
	require.Equal(t, "nodes\nstatus\nstreams\nwaits\n", f.mustShell(t, "ls dir/.gears"))
	require.Equal(t, "plain\nq\nsub\n", f.mustShell(t, "ls dir/.gears/streams"))
	require.Equal(t, "done\njobs\n", f.mustShell(t, "ls .gears/streams/dir/q"))
	require.Equal(t, "data\n", f.mustShell(t, "ls dir/sub/../.gears/streams/plain"))
	require.Equal(t, "all\ninfo\npeek\n", f.mustShell(t, "ls dir/.gears/streams/q/jobs"))
	require.Equal(t, "put\ntake\n", f.mustShell(t, "cd dir/.gears/streams/q/jobs; ls put take"))
	require.Equal(t, "x", f.mustShell(t, "ln -s dir link; cat .gears/streams/link/q/jobs/peek"))
	require.Contains(t, f.mustShell(t, "cat dir/.gears/streams/q/jobs/info"), "records 1\n")
	require.Contains(t, f.mustShell(t, "cat .gears/status"), "node test\n")
	require.Contains(t, f.mustShell(t, "cat .gears/nodes"), "test")
	require.NotContains(t, f.mustShell(t, "find . -name '.gears*'; du -a .; tar cf - . | tar tf -; grep -rl x .; true"), ".gears")
	require.NoError(t, os.RemoveAll(f.path("dir")), "what is hidden is not in the way")
}

// TestPermissions: read is peek, write is put, both is take.
func TestPermissions(t *testing.T) {
	f := newFixture(t)
	f.put(t, "/q", "jobs", "x")
	for _, test := range []struct{ mode, put, take, peek, dir string }{
		{"0644", "200", "400", "444", "555"},
		{"0600", "200", "400", "400", "500"},
		{"0666", "222", "444", "444", "555"},
		{"0622", "222", "400", "400", "555"},
		{"0440", "0", "0", "440", "550"},
	} {
		out := f.mustShell(t, "chmod "+test.mode+" q; chown 12:34 q; cd .gears/streams/q/jobs; stat -c '%a %u:%g' put take peek .")
		require.Equal(t, fmt.Sprintf("%s 12:34\n%s 12:34\n%s 12:34\n%s 12:34\n", test.put, test.take, test.peek, test.dir), out, test.mode)
	}
}

func TestMissingFileIsMadeByItsWriter(t *testing.T) {
	f := newFixture(t)
	require.NoError(t, os.Chmod(filepath.Dir(f.dir), 0o755))
	require.NoError(t, os.Chmod(f.dir, 0o777))
	asNobody(t, func() {
		require.NoError(t, os.WriteFile(f.control("mine", "jobs", "put"), []byte("x"), 0))
	})
	require.Equal(t, "65534 644\n", f.mustShell(t, "stat -c '%u %a' mine"))
	require.NoError(t, os.Chmod(f.dir, 0o755))
	asNobody(t, func() {
		require.ErrorIs(t, os.WriteFile(f.control("other", "jobs", "put"), []byte("x"), 0), unix.EACCES)
	})
}

// TestExecWithOpenControlFiles: an execve closes the files that are not for the
// new program, and the handler of that close looks at the process that waits
// for it.
func TestExecWithOpenControlFiles(t *testing.T) {
	f := newFixture(t)
	f.put(t, "/q", "jobs", "0123456789")
	take, err := os.Open(f.control("q", "jobs", "take"))
	require.NoError(t, err)
	defer take.Close()
	_, err = take.Read(make([]byte, 3))
	require.NoError(t, err)
	put, err := os.OpenFile(f.control("q", "out", "put"), os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = put.WriteString("half ")
	require.NoError(t, err)
	for range 5 {
		require.NoError(t, exec.Command("true").Run())
	}
	_, err = put.WriteString("and half")
	require.NoError(t, err)
	require.NoError(t, put.Close())
	require.Equal(t, []string{"half and half"}, f.records(t, "/q", "out"), "another's close commits nothing")
	require.EqualValues(t, 1, f.info(t, "/q", "jobs").Leased, "nor does it settle")
}
