package tests

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
	"getfattr": "attr", "setfattr": "attr",
}

func TestMain(m *testing.M) {
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	if err := setUp(); err != nil {
		fmt.Fprintln(os.Stderr, "tests:", err)
		return 1
	}
	status := m.Run()
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
	// Nothing of the caller's may decide where the programs under test go.
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
