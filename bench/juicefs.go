package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// JuiceFS is built in its own module, since as a tool of one of ours (as the servers of
// bench/peers are) it would not get what its go.mod replaces. With Go 1.26 it takes a newer
// godeltaprof, and a linker that does not mind names of the runtime.
const (
	juiceFS        = "juicefs" // as -peers names it
	juiceModule    = "github.com/juicedata/juicefs@v1.2.0"
	juiceSum       = "h1:+m/OwPd2q/qTCGQlMlOW0igW3+ACA761oEjAS0NuK6M="
	juiceDeltaprof = "github.com/grafana/pyroscope-go/godeltaprof@v0.1.9"
	// It is built without the stores that are not used here.
	juiceTags = "nogateway,nowebdav,nocos,nobos,nohdfs,noibmcos,noobs,nooss,noqingstor,noscs,nosftp,noswift," +
		"noupyun,noazure,nogs,noufile,nob2,nonfs,nodragonfly,nosqlite,nomysql,nopg,notikv,noetcd"
)

// juiceFSSide returns JuiceFS's mount, nil where it was not asked for. If it can't be
// built that is an error where -peers names it; where all peers are meant it is
// printed, and the others are measured without it.
func (b *bench) juiceFSSide(ctx context.Context) ([]mounted, error) {
	if len(b.peersOf(juiceFS)) == 0 {
		return nil, nil
	}
	if err := b.buildJuiceFS(ctx); err != nil {
		if b.peers != nil || ctx.Err() != nil {
			return nil, err
		}
		fmt.Fprintf(os.Stderr, "bench: measuring without JuiceFS, which can't be built (-peers juicefs makes that an error): %v\n", err)
		return nil, nil
	}
	return []mounted{&juiceMount{b: b}}, nil
}

// buildJuiceFS puts the program juicefs into b.bin. It needs the module proxy, or a
// module cache that has all of it, and a C compiler.
func (b *bench) buildJuiceFS(ctx context.Context) error {
	program := filepath.Join(b.bin, juiceFS)
	if _, err := os.Stat(program); err == nil {
		return nil // for a workload before this one
	}
	dir := filepath.Join(b.dir, "juicefs-module")
	// The go.mod keeps the go command from those above the directory.
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module bench\n"), 0o644)); err != nil {
		return err
	}
	text, err := goCommand(ctx, dir, "mod", "download", "-json", juiceModule)
	source, err := moduleDir(text, err)
	if err != nil {
		return err
	}
	// The module cache is not to be written: go.mod and go.sum are a copy.
	for name, copied := range map[string]string{"go.mod": "juicefs.mod", "go.sum": "juicefs.sum"} {
		text, err := os.ReadFile(filepath.Join(source, name))
		if err := errors.Join(err, os.WriteFile(filepath.Join(dir, copied), text, 0o644)); err != nil {
			return err
		}
	}
	modfile := "-modfile=" + filepath.Join(dir, "juicefs.mod")
	if _, err := goCommand(ctx, source, "get", modfile, juiceDeltaprof); err != nil {
		return err
	}
	_, err = goCommand(ctx, source, "build", modfile, "-ldflags=-checklinkname=0", "-tags", juiceTags, "-o", program, ".")
	return err
}

// goCommand runs the go command in a directory and returns what it prints.
func goCommand(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1", "GOWORK=off")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, errs.Bytes())
	}
	return out, err
}

// moduleDir returns where the files of JuiceFS's module are, from what go mod download
// has printed and how it ended.
func moduleDir(text []byte, ended error) (string, error) {
	var module struct{ Dir, Sum, Error string }
	if err := json.Unmarshal(text, &module); err != nil {
		return "", errors.Join(ended, fmt.Errorf("what go mod download printed: %w", err))
	}
	switch {
	case module.Error != "":
		return "", fmt.Errorf("%s: %s", juiceModule, module.Error)
	case ended != nil:
		return "", ended
	case module.Sum != juiceSum:
		return "", fmt.Errorf("%s is another than it was: its checksum is %q, not %s", juiceModule, module.Sum, juiceSum)
	case module.Dir == "":
		return "", fmt.Errorf("%s has no directory", juiceModule)
	}
	return module.Dir, nil
}

// juiceMount is JuiceFS with its metadata in badger and its blocks in a directory. All
// of it is below the directory of the mount, also its cache of blocks; everything else
// is as by default.
type juiceMount struct {
	b       *bench
	at      string
	process *process
}

var _ mounted = (*juiceMount)(nil)

func (j *juiceMount) String() string { return "JuiceFS" }

// path is that of something beside the mount point.
func (j *juiceMount) path(name string) string { return filepath.Join(filepath.Dir(j.at), name) }

func (j *juiceMount) metaURL() string { return "badger://" + j.path("meta") }

func (j *juiceMount) start(ctx context.Context) error {
	dirs, err := j.b.mountDirs("juicefs-", "mnt", "bucket", "cache")
	if err != nil {
		return err
	}
	j.at = dirs[0]
	format := j.command("format", "--storage", "file", "--bucket", j.path("bucket")+"/", j.metaURL(), "bench")
	if out, err := format.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", format, err, out)
	}
	return j.mount(ctx)
}

func (j *juiceMount) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(j.b.bin, juiceFS), args...)
	cmd.Env = append(os.Environ(), "JFS_MOUNT_TIMEOUT=120") // seconds, for a busy machine
	return cmd
}

// mount starts what serves the volume: a process that serves, and one that watches it.
func (j *juiceMount) mount(ctx context.Context) error {
	unlock, err := lockUpdatedb()
	if err != nil {
		return err
	}
	defer unlock()
	cmd := j.command("mount", "--no-usage-report", "--no-syslog", "--cache-dir", j.path("cache"), j.metaURL(), j.at)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a group of their own: a ^C at the bench is not for them
	if j.process, err = j.b.startCommand(ctx, "is ready at", cmd); err == nil || cmd.Process == nil {
		return err
	}
	if killed := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); !errors.Is(killed, syscall.ESRCH) {
		err = errors.Join(err, killed)
	}
	if isMounted(j.at) {
		err = errors.Join(err, syscall.Unmount(j.at, syscall.MNT_DETACH))
	}
	return errors.Join(err, removeSocket(cmd.Process.Pid))
}

// lockUpdatedb keeps JuiceFS from entering itself in the configuration of updatedb(8):
// it leaves the file alone while somebody else has it locked.
func lockUpdatedb() (unlock func(), err error) {
	f, err := os.Open("/etc/updatedb.conf")
	if errors.Is(err, os.ErrNotExist) {
		return func() {}, nil
	}
	if err == nil {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
	}
	return func() { _ = f.Close() }, err // read only: closing it can lose nothing
}

// removeSocket removes that over which a mount's processes hand on its connection; they
// leave it behind, and it can't be elsewhere.
func removeSocket(pid int) error {
	err := os.Remove(fmt.Sprint("/tmp/fuse_fd_comm.", pid))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func (j *juiceMount) again(ctx context.Context) error {
	if err := j.end(); err != nil {
		return err
	}
	return j.mount(ctx)
}

// end has the process that serves unmount and end; who watches it ends with it.
func (j *juiceMount) end() error {
	pids := j.pids()
	if err := syscall.Kill(pids[min(1, len(pids)-1)], syscall.SIGTERM); err != nil {
		return err
	}
	<-j.process.exited
	err := errors.Join(j.process.err, removeSocket(j.process.pid()))
	j.process = nil
	return err
}

func (j *juiceMount) dir() string { return j.at }

// pids are the one that watches and, behind it, the one that serves.
func (j *juiceMount) pids() []int { return familyOf(j.process.pid()) }

func (j *juiceMount) stop() error {
	if j.at == "" {
		return nil
	}
	var err error
	if j.process != nil {
		err = j.end()
	}
	return errors.Join(err, os.RemoveAll(filepath.Dir(j.at)))
}
