package tests

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// What TestMain sets up for all tests.
var (
	scratch string // a directory of this run's own; its path is short enough for sockets
	binDir  string // holds gearsfs and gearsfsd
)

// torture is whether the long tests were asked for.
var torture = os.Getenv("GEARSFS_TORTURE") == "1"

// size returns how large a test is: as bounded for every run, or in full.
func size(bounded, full int) int {
	if torture {
		return full
	}
	return bounded
}

// tools that the tests run, and the Debian packages that they are in.
var tools = map[string]string{
	"cp": "coreutils", "wc": "coreutils", "diff": "diffutils", "tar": "tar", "rsync": "rsync", "git": "git",
	"sqlite3": "sqlite3", "make": "make", "vim": "vim", "go": "golang", "mount": "mount", "umount": "mount",
	"getfattr": "attr", "setfattr": "attr", "ip": "iproute2", "fio": "fio",
}

func TestMain(m *testing.M) {
	if dir := os.Getenv(insideEnv); dir != "" {
		os.Exit(runInside(m, dir))
	}
	os.Exit(runAll())
}

// insideEnv tells the process that runs the tests what scratch is.
const insideEnv = "GEARSFS_TESTS_INSIDE"

// runAll has the tests run by a process of its own, in a network namespace of
// its own where that is allowed: whatever it makes of networks goes with it,
// and what else it leaves behind is found here, however it ended.
func runAll() int {
	if err := setUp(); err != nil {
		fmt.Fprintln(os.Stderr, "tests:", err)
		return 1
	}
	status := runAgain()
	if leaks := append(leakedMounts(), leakedProcesses()...); len(leaks) > 0 {
		fmt.Fprintf(os.Stderr, "tests: left behind:\n\t%s\n", strings.Join(leaks, "\n\t"))
		status = 1
	}
	for _, mount := range leakedMounts() {
		// Otherwise RemoveAll below would remove what is in it.
		if err := exec.Command("umount", "-l", mount).Run(); err != nil {
			fmt.Fprintln(os.Stderr, "tests: detach", mount+":", err)
			return 1
		}
	}
	if err := os.RemoveAll(scratch); err != nil {
		fmt.Fprintln(os.Stderr, "tests:", err)
		status = 1
	}
	return status
}

// runAgain runs this program again, as the process that runs the tests.
func runAgain() int {
	runtime.LockOSThread() // Pdeathsig is about the thread
	defer runtime.UnlockOSThread()
	inside := exec.Command("/proc/self/exe", os.Args[1:]...)
	inside.Args[0] = os.Args[0]
	inside.Stdin, inside.Stdout, inside.Stderr = os.Stdin, os.Stdout, os.Stderr
	inside.Env = append(os.Environ(), insideEnv+"="+scratch)
	inside.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		inside.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET
	}
	if err := inside.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "tests: run them:", err)
		return 1
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	defer signal.Stop(signals)
	go func() { // ends with the process
		for s := range signals {
			inside.Process.Signal(s) //nolint:errcheck // it may have ended
		}
	}()
	err := inside.Wait()
	if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended {
		fmt.Fprintln(os.Stderr, "tests: run them:", err)
	}
	if status := inside.ProcessState.ExitCode(); status >= 0 {
		return status
	}
	fmt.Fprintln(os.Stderr, "tests: they ended by", inside.ProcessState)
	return 1
}

// runInside runs the tests.
func runInside(m *testing.M, dir string) int {
	scratch, binDir = dir, filepath.Join(dir, "bin")
	if err := errors.Join(unsetOwn(), loopbackUp()); err != nil {
		fmt.Fprintln(os.Stderr, "tests:", err)
		return 1
	}
	return m.Run()
}

func setUp() error {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return fmt.Errorf("mounting needs FUSE: %w", err)
	}
	for tool, pkg := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is missing, install the package %s", tool, pkg)
		}
	}
	var err error
	if scratch, err = os.MkdirTemp("", "gfs"); err != nil {
		return err
	}
	binDir = filepath.Join(scratch, "bin")
	build := exec.Command("go", "build", "-o", binDir+"/", "../cmd/...")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return nil
}

// unsetOwn unsets the variables of the programs under test: nothing of the
// caller's may decide where they go.
func unsetOwn() error {
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "GEARSFS_") || strings.HasPrefix(name, "GEARSFSD_") {
			if err := os.Unsetenv(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// leakedMounts returns the mount points that are still below scratch, the
// innermost first.
func leakedMounts() (mounts []string) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	for line := range strings.Lines(string(info)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], scratch+"/") {
			mounts = append([]string{f[4]}, mounts...)
		}
	}
	return mounts
}

// leakedProcesses returns the processes that still run one of the programs.
// It looks closer only at those of their names: to read a link in /proc of a
// stranger that hangs in the kernel is to hang too.
func leakedProcesses() (leaks []string) {
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return []string{err.Error()}
	}
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err != nil || !bytes.HasPrefix(comm, []byte("gearsfs")) {
			continue
		}
		if to, err := os.Readlink(filepath.Dir(name) + "/exe"); err == nil && strings.HasPrefix(to, binDir+"/") {
			leaks = append(leaks, filepath.Dir(name)+" runs "+to)
		}
	}
	return leaks
}
