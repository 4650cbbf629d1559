package tests

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What can be wrong with a command line, and with what it names.
func TestBadArguments(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	require.Zero(t, d.gearsfs("mkdir", ":/dir").status)
	require.Zero(t, d.gearsfs("put", ":/file", "q", "record").status)
	long := strings.Repeat("k", 251)
	for _, bad := range []struct {
		args   []string
		status int
		words  []string
	}{
		{[]string{"cat", ":/missing"}, 1, []string{"/missing", "no such file"}},
		{[]string{"ls", ":/missing"}, 1, []string{"no such file"}},
		{[]string{"stat", ":/missing"}, 1, []string{"no such file"}},
		{[]string{"rm", ":/missing"}, 1, []string{"no such file"}},
		{[]string{"streams", ":/missing"}, 1, []string{"no such file"}},
		{[]string{"put", ":/missing/file", "q", "x"}, 1, []string{"no such file"}},
		{[]string{"take", ":/missing/file", "q"}, 1, []string{"no such file"}},
		{[]string{"put", ":/file/below", "q", "x"}, 1, []string{"not a directory"}},

		{[]string{"put", ":/dir", "q", "x"}, 1, []string{"is a directory"}},
		{[]string{"take", ":/dir", "q"}, 1, []string{"is a directory"}},
		{[]string{"peek", ":/dir", "q"}, 1, []string{"is a directory"}},
		{[]string{"cat", ":/dir"}, 1, []string{"is a directory"}},
		{[]string{"seal", ":/dir", "q"}, 1, []string{"is a directory"}},

		{[]string{"put", ":/file", "", "x"}, 2, []string{"key"}},
		{[]string{"take", ":/file", ""}, 2, []string{"key"}},
		{[]string{"take", ":/file", "a,,b"}, 2, []string{"key"}},
		{[]string{"put", ":/file", long, "x"}, 2, []string{"key", "250"}},
		{[]string{"peek", ":/file", long}, 2, []string{"key", "250"}},
		{[]string{"put", ":/file", "a/b", "x"}, 2, []string{"key"}},
		{[]string{"put", ":/file", "a,b", "x"}, 2, []string{"key"}},
		{[]string{"put", ":/file", "..", "x"}, 2, []string{"key"}},

		{[]string{"take", ":/file", "q", "-n", "-1"}, 2, []string{"-1"}},
		{[]string{"take", ":/file", "q", "-n", "many"}, 2, []string{"many"}},
		{[]string{"peek", ":/file", "q", "-n", "-5"}, 2, []string{"-5"}},
		{[]string{"take", ":/file", "q", "--wait", "-1s"}, 2, []string{"wait"}},
		{[]string{"take", ":/file", "q", "--nonsense"}, 2, []string{"nonsense"}},
		{[]string{"nonsense"}, 2, []string{"nonsense"}},
		{[]string{"put", ":/file", "q"}, 2, nil},
		{[]string{"put"}, 2, nil},
		{[]string{"put", ":/file", "q", "x", "y"}, 2, nil},
		{[]string{"put", "", "q", "x"}, 2, []string{"empty"}},
		{[]string{"cat", "/not/in/a/mount"}, 2, []string{"mount"}},
		{[]string{"wordcount", "--top", "-3", os.DevNull}, 2, []string{"top"}},
		{[]string{"wordcount", "/missing/file"}, 1, []string{"no such file"}},
		{[]string{"remote", "add", "", "localhost:1"}, 2, nil},
	} {
		t.Run(strings.ReplaceAll(strings.Join(bad.args, " "), long, "LONG"), func(t *testing.T) {
			d.gearsfs(bad.args...).requireError(t, bad.status, bad.words...)
		})
	}
	require.Equal(t, "record\n", d.gearsfs("take", ":/file", "q", "-n", "all").stdout, "nothing was changed")
}

func TestRecordTooLarge(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	put := func(n int) result {
		c := command{stdin: bytes.NewReader(make([]byte, n)), env: []string{"GEARSFS_NODE=" + d.addr}}
		return c.run(t, gearsfsPath(), "put", ":/file", "q", "-")
	}
	put(16<<20+1).requireError(t, 1, "16")
	require.Zero(t, put(16<<20).status)
	require.Len(t, d.gearsfs("take", ":/file", "q", "--raw", "-n", "all").stdout, 16<<20)
}

// A second daemon, and one that finds its port taken, is refused; the first
// does not notice.
func TestInUse(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	gearsfsd := func(args ...string) result {
		return command{}.run(t, filepath.Join(binDir, "gearsfsd"), args...)
	}
	gearsfsd("--data", d.data, "--listen", "unix:"+filepath.Join(dir(t), "s")).requireError(t, 1, "in use", d.data, "stop that process")

	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	gearsfsd("--data", filepath.Join(dir(t), "data"), "--listen", l.Addr().String()).requireError(t, 1, "in use", l.Addr().String())
	gearsfsd("--data", filepath.Join(dir(t), "data"), "--listen", d.addr).requireError(t, 1, "another process")

	gearsfsd("--data", filepath.Join(dir(t), "data"), "--listen", "0.0.0.0:0").requireError(t, 2, "--insecure")
	gearsfsd("--data", filepath.Join(dir(t), "data"), "--listen", "nonsense").requireError(t, 2, "nonsense")
	gearsfsd("--nonsense").requireError(t, 2, "nonsense")
	gearsfsd("--data", "/dev/null/data", "--listen", "unix:"+filepath.Join(dir(t), "s")).requireError(t, 1, "/dev/null")

	require.Zero(t, d.gearsfs("put", ":/file", "q", "still there").status)
}

// A wait that --wait ends says that the node was lost in it.
func TestWaitOnALostNode(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	cmd := exec.Command(gearsfsPath(), "take", ":/file", "q", "--wait", "2s")
	cmd.Env = append(os.Environ(), "GEARSFS_NODE="+d.addr)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(stderr)
	require.True(t, lines.Scan())
	require.Contains(t, lines.Text(), "there is no file :/file yet")
	d.kill()
	last := ""
	for lines.Scan() {
		last = lines.Text()
	}
	require.Error(t, cmd.Wait())
	require.Equal(t, 3, cmd.ProcessState.ExitCode(), last)
	require.Equal(t, "gearsfs take: :/file q: nothing came within --wait: the node was lost meanwhile", last)
}

// A node that is not there, does not answer or speaks something else is an
// error within 5 s.
func TestBadPeer(t *testing.T) {
	t.Parallel()
	// serve returns the address of a listener that greets and then falls silent.
	serve := func(greeting string) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				t.Cleanup(func() { c.Close() })
				if _, err := c.Write([]byte(greeting)); err != nil {
					return
				}
			}
		}()
		return l.Addr().String()
	}
	for name, bad := range map[string]struct {
		addr  string
		words []string
	}{
		"nobody listens": {freeAddr(t), []string{"unreachable"}},
		"no socket":      {"unix:" + filepath.Join(dir(t), "none"), []string{"unreachable"}},
		"silent":         {serve(""), []string{"no answer"}},
		"a web server":   {serve("HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"), []string{"protocol"}},
		"zeros":          {serve(strings.Repeat("\x00", 4096)), []string{"protocol"}},
		"ones":           {serve(strings.Repeat("\xff", 4096)), []string{"protocol"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			command{}.run(t, gearsfsPath(), "put", "--node", bad.addr, ":/file", "q", "x").requireError(t, 1, bad.words...)
			require.Less(t, time.Since(began), 7*time.Second, "5 s, and what the machine is busy with")
		})
	}
	command{}.run(t, gearsfsPath(), "put", "--node", "no address", ":/file", "q", "x").requireError(t, 2)
}

// Clients that speak garbage harm nobody.
func TestBadClient(t *testing.T) {
	t.Parallel()
	tcp := freeAddr(t)
	d := startDaemon(t, "--listen", tcp)
	for _, network := range []struct{ kind, addr string }{{"unix", strings.TrimPrefix(d.addr, "unix:")}, {"tcp", tcp}} {
		for _, garbage := range []string{
			"", "GET / HTTP/1.1\r\n\r\n", strings.Repeat("\x00", 1<<16), strings.Repeat("\xff", 1<<16),
			"\x00\x00\x00\x09garbage that is a frame's length",
		} {
			c, err := net.Dial(network.kind, network.addr)
			require.NoError(t, err)
			_, _ = c.Write([]byte(garbage)) // it may be cut off meanwhile
			require.NoError(t, c.(interface{ CloseWrite() error }).CloseWrite())
			require.NoError(t, c.SetReadDeadline(time.Now().Add(30*time.Second)))
			_, err = bytes.NewBuffer(nil).ReadFrom(c)
			if nerr, ok := err.(net.Error); ok {
				require.False(t, nerr.Timeout(), "the daemon ends the connection")
			}
			c.Close()
		}
	}
	require.Zero(t, d.gearsfs("put", ":/file", "q", "x").status)
	require.Equal(t, "x\n", d.gearsfs("take", ":/file", "q").stdout)
}

// fingerprint describes all that is below a directory, but for what Pebble
// writes anew whenever it opens its own.
func fingerprint(t *testing.T, root string) string {
	t.Helper()
	var all strings.Builder
	require.NoError(t, filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := e.Name()
		if filepath.Base(filepath.Dir(path)) == "state" && !strings.HasSuffix(name, ".sst") && !strings.HasSuffix(name, ".blob") {
			return nil
		}
		sum := [sha256.Size]byte{}
		if e.Type().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum = sha256.Sum256(data)
		}
		fmt.Fprintf(&all, "%s %v %x\n", path, e.Type(), sum)
		return nil
	}))
	return all.String()
}

// Opening what is not GearsFS's changes nothing.
func TestForeignData(t *testing.T) {
	t.Parallel()
	advice := map[string]string{"a user's files": "name an empty directory"}
	for name, make := range map[string]func(t *testing.T, data string){
		"a user's files": func(t *testing.T, data string) {
			require.NoError(t, os.WriteFile(filepath.Join(data, "thesis.txt"), []byte("chapter one"), 0o644))
		},
		"a format of the future": func(t *testing.T, data string) {
			format := filepath.Join(data, "FORMAT")
			d := newDaemon(t)
			d.data = data
			d.start()
			d.stop()
			text, err := os.ReadFile(format)
			require.NoError(t, err)
			future := bytes.Map(func(r rune) rune {
				if '0' <= r && r <= '9' {
					return '9'
				}
				return r
			}, text)
			require.NotEqual(t, text, future)
			require.NoError(t, os.WriteFile(format, future, 0o644))
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t)
			require.NoError(t, os.Mkdir(d.data, 0o755))
			make(t, d.data)
			before := fingerprint(t, d.data)
			r := command{}.run(t, filepath.Join(binDir, "gearsfsd"), "--data", d.data, "--listen", d.addr)
			r.requireError(t, 1, d.data, advice[name])
			require.Equal(t, before, fingerprint(t, d.data))
		})
	}
	d := newDaemon(t)
	require.NoError(t, os.WriteFile(d.data, nil, 0o644))
	command{}.run(t, filepath.Join(binDir, "gearsfsd"), "--data", d.data, "--listen", d.addr).requireError(t, 1, d.data)
}

// A damaged byte anywhere in the data directory is found, or does no harm: the
// daemon refuses to start with a clear error and changes nothing, or it has
// every record.
func TestDamagedData(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	const records = 2000
	var lines strings.Builder
	for i := range records {
		fmt.Fprintf(&lines, "record %d\n", i)
	}
	put := command{stdin: strings.NewReader(lines.String()), env: []string{"GEARSFS_NODE=" + d.addr}}
	require.Zero(t, put.run(t, gearsfsPath(), "put", ":/file", "q", "-l").status)
	d.stop()
	var files []string
	require.NoError(t, filepath.WalkDir(d.data, func(path string, e fs.DirEntry, err error) error {
		if info, ierr := e.Info(); err == nil && ierr == nil && e.Type().IsRegular() && info.Size() > 0 {
			files = append(files, path)
		}
		return err
	}))
	require.NotEmpty(t, files)
	refused := 0
	for _, path := range files {
		name := strings.TrimPrefix(path, d.data+"/")
		sound, err := os.ReadFile(path)
		require.NoError(t, err)
		used := len(bytes.TrimRight(sound, "\x00")) // of a file that was allocated ahead
		if used == 0 {
			continue
		}
		for _, at := range []int{0, used / 2} {
			t.Run(fmt.Sprintf("%s at %d of %d", name, at, used), func(t *testing.T) {
				copied := newDaemon(t)
				must(t, "", "cp", "-a", d.data, copied.data)
				bad := bytes.Clone(sound)
				bad[at] ^= 0x55
				require.NoError(t, os.WriteFile(filepath.Join(copied.data, name), bad, 0o644))
				before := fingerprint(t, copied.data)
				if err := copied.tryStart(); err != nil {
					refused++
					require.Equal(t, 1, copied.cmd.ProcessState.ExitCode(), err)
					require.Len(t, strings.Split(copied.output.String(), "\n"), 1, "one line: %v", err)
					require.Regexp(t, regexp.QuoteMeta(copied.data)+"|checksum", copied.output.String(), "where or what the damage is")
					require.Equal(t, before, fingerprint(t, copied.data), "refusing changes nothing: %v", err)
					return
				}
				r := copied.gearsfs("peek", ":/file", "q", "-n", "all")
				if r.status == 0 {
					require.Equal(t, lines.String(), r.stdout)
				} else {
					r.requireError(t, 1)
					require.Regexp(t, "damaged|checksum", r.stderr)
				}
				// What nobody has read yet may be found while the state is flushed.
				require.NoError(t, copied.cmd.Process.Signal(syscall.SIGTERM))
				<-copied.exited
				if status := copied.cmd.ProcessState.ExitCode(); status != 0 {
					require.Equal(t, 1, status)
					require.Regexp(t, "damaged|checksum", copied.output.String())
				}
			})
		}
	}
	t.Logf("%d of the starts were refused", refused)
	require.Positive(t, refused)
}

// mountsAt counts the mounts on a directory.
func mountsAt(point string) (n int) {
	for _, m := range leakedMounts() {
		if m == point {
			n++
		}
	}
	return n
}

// Where a mount can't be made there is an error and no mount.
func TestBadMountPoint(t *testing.T) {
	t.Parallel()
	d := startMounted(t)
	require.NoError(t, os.WriteFile(filepath.Join(d.mount, "here"), nil, 0o644))
	full := dir(t)
	require.NoError(t, os.WriteFile(filepath.Join(full, "file"), nil, 0o644))
	for name, bad := range map[string]struct {
		point string
		words []string
	}{
		"missing":         {filepath.Join(dir(t), "none"), []string{"no such directory"}},
		"a file":          {filepath.Join(full, "file"), []string{"not a directory"}},
		"not empty":       {full, []string{"not empty"}},
		"already mounted": {d.mount, []string{"mounted"}},
	} {
		t.Run(name, func(t *testing.T) {
			before := mountsAt(bad.point)
			command{}.run(t, gearsfsPath(), "mount", "--node", d.addr, bad.point).requireError(t, 1, append(bad.words, bad.point)...)
			require.Equal(t, before, mountsAt(bad.point))
			other := newDaemon(t)
			command{}.run(t, filepath.Join(binDir, "gearsfsd"), "--data", other.data, "--listen", other.addr, "--mount", bad.point).
				requireError(t, 1, append(bad.words, bad.point)...)
			require.Equal(t, before, mountsAt(bad.point))
		})
	}
	command{}.run(t, gearsfsPath(), "mount", "--node", freeAddr(t), dir(t)).requireError(t, 1, "unreachable")

	command{}.run(t, gearsfsPath(), "umount", full).requireError(t, 1, "mount")
}

// A mount that is in use goes out of sight when it is unmounted, and keeps
// nobody from ending.
func TestMountInUse(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(t *testing.T, d *daemon){
		"SIGTERM": func(*testing.T, *daemon) {},
		"umount": func(t *testing.T, d *daemon) {
			must(t, "", gearsfsPath(), "umount", d.mount)
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := startMounted(t)
			path := filepath.Join(d.mount, "file")
			require.NoError(t, os.WriteFile(path, []byte("text"), 0o644))
			f, err := os.Open(path)
			require.NoError(t, err)
			defer f.Close()
			end(t, d)
			d.stop()
			require.NotContains(t, leakedMounts(), d.mount)
			require.NoFileExists(t, path)
		})
	}
}
