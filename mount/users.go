package mount

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// User is a process that uses a file system.
type User struct {
	PID     int
	Command string // its name
	Path    string // one of those by which it uses the file system
	How     string // what the path is to it: an open file, its working directory, ...
}

func (u User) String() string {
	return fmt.Sprintf("process %d (%s): %s %s", u.PID, u.Command, u.How, u.Path)
}

// usersOf returns the processes that use what is below dir, as far as this
// process may know. It reads the links that the kernel makes up in /proc, which
// say where they lead without going there: a mount that hangs is not touched.
func usersOf(dir string) []User {
	names, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var users []User
	for _, entry := range names {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if path, how := usedBy(pid, dir); how != "" {
			comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			if err != nil {
				continue // it has ended
			}
			users = append(users, User{PID: pid, Command: strings.TrimSpace(string(comm)), Path: path, How: how})
		}
	}
	return users
}

// usedBy returns a path below dir that a process uses, and how; how is empty
// where it uses none.
func usedBy(pid int, dir string) (path, how string) {
	proc := fmt.Sprintf("/proc/%d/", pid)
	for _, link := range []struct{ name, how string }{
		{"cwd", "works in"}, {"root", "has as its root"}, {"exe", "runs"},
	} {
		if path, ok := below(proc+link.name, dir); ok {
			return path, link.how
		}
	}
	fds, err := filepath.Glob(proc + "fd/*")
	if err != nil {
		return "", ""
	}
	for _, fd := range fds {
		if path, ok := below(fd, dir); ok {
			return path, "has open"
		}
	}
	if path := mappedBy(proc, dir); path != "" {
		return path, "has mapped"
	}
	return "", ""
}

func below(link, dir string) (string, bool) {
	to, err := os.Readlink(link)
	if err != nil {
		return "", false // it has ended, or is somebody else's
	}
	return to, to == dir || strings.HasPrefix(to, dir+"/")
}

// mapsPatience is how long a process's maps may take: they can't be read while
// it waits for a page of a file system that hangs and maps something else.
const mapsPatience = 200 * time.Millisecond

func mappedBy(proc, dir string) string {
	found := make(chan string, 1)
	go func() { // ends when the kernel answers, or with this process
		text, err := os.ReadFile(proc + "maps")
		if err != nil {
			found <- ""
			return
		}
		lines := bytes.Split(text, []byte("\n"))
		i := slices.IndexFunc(lines, func(line []byte) bool { return bytes.Contains(line, []byte(" "+dir+"/")) })
		if i < 0 {
			found <- ""
			return
		}
		_, path, _ := bytes.Cut(lines[i], []byte(" "+dir+"/"))
		found <- dir + "/" + string(path)
	}()
	select {
	case path := <-found:
		return path
	case <-time.After(mapsPatience):
		return ""
	}
}
