package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The tools that people use work on the mount as on a local disk.
func TestTools(t *testing.T) {
	t.Parallel()
	d := startMounted(t)
	here := func(t *testing.T) string {
		at := filepath.Join(d.mount, strings.ReplaceAll(t.Name(), "/", "-"))
		require.NoError(t, os.Mkdir(at, 0o755))
		return at
	}
	for _, tool := range []struct {
		name string
		test func(t *testing.T, at string)
	}{
		{"cp", testCp},
		{"tar", testTar},
		{"rsync", testRsync},
		{"git", testGit},
		{"fio", testFio},
		{"sqlite journal", func(t *testing.T, at string) { testSqlite(t, at, "delete") }},
		{"sqlite wal", func(t *testing.T, at string) { testSqlite(t, at, "wal") }},
		{"make", testMake},
		{"vim", testVim},
		{"go build", testGoBuild},
	} {
		t.Run(tool.name, func(t *testing.T) { tool.test(t, here(t)) })
	}
}

// sampleTree makes a directory with something of everything that archives keep.
func sampleTree(t *testing.T) string {
	t.Helper()
	at := filepath.Join(dir(t), "tree")
	for i := range 20 {
		sub := filepath.Join(at, fmt.Sprintf("d%d", i%4), fmt.Sprintf("e%d", i))
		require.NoError(t, os.MkdirAll(sub, 0o750))
		for j := range 10 {
			text := strings.Repeat(fmt.Sprintf("line %d of %d\n", j, i), j*j*20)
			require.NoError(t, os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%d", j)), []byte(text), 0o640))
		}
	}
	command{dir: at}.must(t, "sh", "-ec", `
		ln d0/e0/f1 hard
		ln -s d0/e0/f1 soft
		ln -s nowhere dangling
		mkfifo fifo
		chmod 4755 d0/e0/f2
		touch 'with space' "$(printf 'with\nnewline')" 'ümläut' .hidden
		mkdir empty
		truncate -s 1M sparse
		setfattr -n user.colour -v red d0/e0/f3
		find . -depth -exec touch -h -d '2001-02-03 04:05:06.123456789' {} +
	`)
	return at
}

// listing is what must survive copying: names, types, modes, times, links.
const listing = `find . -printf '%P %y %m %n %l %U %G %T@ ' \( -type f -printf %s -o -true \) -printf '\n' | LC_ALL=C sort | sed 's/^ .*//'`

func requireSameTree(t *testing.T, want, got string) {
	t.Helper()
	must(t, "", "diff", "-r", "--no-dereference", "--exclude=fifo", want, got)
	require.Equal(t, must(t, want, "sh", "-c", listing), must(t, got, "sh", "-c", listing))
	require.Equal(t, "red", must(t, got, "getfattr", "--only-values", "-n", "user.colour", "d0/e0/f3"))
}

func testCp(t *testing.T, at string) {
	tree := sampleTree(t)
	must(t, "", "cp", "-a", tree, at+"/in")
	requireSameTree(t, tree, at+"/in")
	must(t, "", "cp", "-a", at+"/in", at+"/within")
	requireSameTree(t, tree, at+"/within")
	back := filepath.Join(dir(t), "back")
	must(t, "", "cp", "-a", at+"/in", back)
	requireSameTree(t, tree, back)
	must(t, at, "rm", "-r", "in", "within")
	require.Empty(t, must(t, at, "ls", "-A"))
}

func testTar(t *testing.T, at string) {
	tree := sampleTree(t)
	archive := filepath.Join(at, "tree.tar")
	must(t, tree, "tar", "--xattrs", "-cf", archive, ".")
	require.NoError(t, os.Mkdir(at+"/out", 0o755))
	must(t, at+"/out", "tar", "--xattrs", "--xattrs-include=*", "-xpf", archive)
	requireSameTree(t, tree, at+"/out")
	must(t, at+"/out", "tar", "--xattrs", "-df", archive)
}

func testRsync(t *testing.T, at string) {
	tree := sampleTree(t)
	must(t, "", "rsync", "-aXH", tree+"/", at+"/copy/")
	requireSameTree(t, tree, at+"/copy")
	again := must(t, "", "rsync", "-aXHi", tree+"/", at+"/copy/")
	require.Empty(t, again, "nothing is left to do")
	require.NoError(t, os.WriteFile(filepath.Join(tree, "d1/e1/f1"), []byte("changed"), 0o640))
	must(t, "", "rsync", "-aXH", "--inplace", "--delete", tree+"/", at+"/copy/")
	must(t, "", "rsync", "-aXH", at+"/copy/", at+"/second/")
	requireSameTree(t, tree, at+"/second")
}

func testGit(t *testing.T, at string) {
	git := command{dir: at, env: []string{
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b",
		"GIT_CONFIG_NOSYSTEM=1", "HOME=" + dir(t),
	}}
	git.must(t, "git", "init", "-q", "-b", "main", "origin")
	git.dir = at + "/origin"
	commits := size(300, 5000)
	git.stdin = strings.NewReader(commitHistory(commits))
	git.must(t, "git", "fast-import", "--quiet")
	git.stdin = nil
	git.must(t, "git", "checkout", "-q", "main")
	for i := range 20 {
		name := fmt.Sprintf("f%d", i%7)
		require.NoError(t, os.WriteFile(filepath.Join(git.dir, name), []byte(strings.Repeat(fmt.Sprintln(i), 100*i)), 0o644))
		git.must(t, "git", "add", name)
		git.must(t, "git", "commit", "-q", "-m", fmt.Sprint("commit ", i))
	}
	git.dir = at
	git.must(t, "git", "clone", "-q", "--no-local", "origin", "clone")
	git.dir = at + "/clone"
	require.NoError(t, os.WriteFile(git.dir+"/new", []byte("new\n"), 0o644))
	git.must(t, "git", "add", "new")
	git.must(t, "git", "commit", "-q", "-m", "on the mount")
	git.must(t, "git", "gc", "-q", "--aggressive", "--prune=now")
	git.must(t, "git", "fsck", "--full", "--strict")
	require.Empty(t, git.must(t, "git", "status", "--porcelain"))
	git.must(t, "git", "checkout", "-q", fmt.Sprint("HEAD~", commits/2))
	require.Empty(t, git.must(t, "git", "status", "--porcelain"))
	git.must(t, "git", "checkout", "-q", "main")
	git.must(t, "git", "worktree", "add", "-q", "../tree", "-b", "side")
	require.Equal(t, fmt.Sprintln(commits+21), git.must(t, "git", "rev-list", "--count", "HEAD"))
	git.must(t, "git", "diff", "--exit-code", "--no-index", "--", at+"/origin/src", at+"/tree/src")
}

// commitHistory is a repository for git fast-import: each commit changes one of the
// files and adds another.
func commitHistory(commits int) string {
	var b strings.Builder
	data := func(text string) { fmt.Fprintf(&b, "data %d\n%s\n", len(text), text) }
	for i := range commits {
		fmt.Fprintf(&b, "commit refs/heads/main\ncommitter a <a@b> %d +0000\n", 1_000_000_000+i)
		data(fmt.Sprint("change ", i))
		fmt.Fprintf(&b, "M 644 inline src/d%d/common%d\n", i%5, i%11)
		data(strings.Repeat(fmt.Sprintf("line of %d\n", i), i%300))
		fmt.Fprintf(&b, "M 755 inline src/d%d/own%d\n", i%17, i)
		data(fmt.Sprint(i))
	}
	return b.String()
}

// testFio writes with several engines and block sizes at random places, and
// reads back that each block is what was written there last.
func testFio(t *testing.T, at string) {
	for name, args := range map[string][]string{
		"psync":  {"--ioengine=psync", "--bs=4k", "--fdatasync=16"},
		"mmap":   {"--ioengine=mmap", "--bs=4k", "--fsync=64"},
		"direct": {"--ioengine=libaio", "--direct=1", "--iodepth=16", "--bs=16k"},
		"mixed":  {"--ioengine=psync", "--bsrange=512-256k", "--bs_unaligned=1"},
	} {
		t.Run(name, func(t *testing.T) {
			megabytes := size(4, 256)
			must(t, at, "fio", append([]string{"--name=" + name, "--minimal", "--rw=randwrite", fmt.Sprintf("--size=%dm", megabytes),
				fmt.Sprintf("--io_size=%dm", 2*megabytes), "--numjobs=2", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1",
				"--randseed=7", "--group_reporting"}, args...)...)
		})
	}
}

func testSqlite(t *testing.T, at, mode string) {
	db := filepath.Join(at, "db")
	sql := func(script string) string {
		return command{stdin: strings.NewReader(".timeout 20000\n" + script)}.must(t, "sqlite3", "-bail", db)
	}
	require.Contains(t, sql("PRAGMA journal_mode="+mode+"; CREATE TABLE t(id INTEGER PRIMARY KEY, who, n);"), mode)
	writers, each := 4, size(25, 2000)
	t.Run("writers", func(t *testing.T) {
		for w := range writers {
			t.Run(fmt.Sprint(w), func(t *testing.T) {
				t.Parallel()
				for i := range each {
					c := command{stdin: strings.NewReader(fmt.Sprintf(
						".timeout 20000\nBEGIN IMMEDIATE; INSERT INTO t(who,n) VALUES(%d,%d); INSERT INTO t(who,n) VALUES(%d,%d); COMMIT;", w, i, w, -i))}
					c.must(t, "sqlite3", "-bail", db)
				}
			})
		}
	})
	require.Equal(t, fmt.Sprintf("%d|0\n", 2*writers*each), sql("SELECT count(*), sum(n) FROM t;"))
	require.Equal(t, "ok\n", sql("PRAGMA integrity_check;"))
	sql("DELETE FROM t WHERE id % 3 = 0; VACUUM;")
	require.Equal(t, "ok\n", sql("PRAGMA integrity_check;"))
}

func testMake(t *testing.T, at string) {
	makefile := "all: c\nc: a b\n\tcat a b > c\na:\n\techo a > a\nb: a\n\techo b > b\n"
	require.NoError(t, os.WriteFile(at+"/Makefile", []byte(makefile), 0o644))
	require.Contains(t, must(t, at, "make", "-j2"), "cat a b")
	require.Contains(t, must(t, at, "make"), "Nothing to be done")
	must(t, at, "touch", "b")
	require.NotContains(t, must(t, at, "make"), "Nothing to be done")
	require.Equal(t, "a\nb\n", must(t, at, "cat", "c"))
}

func testVim(t *testing.T, at string) {
	file := filepath.Join(at, "text")
	require.NoError(t, os.WriteFile(file, []byte("one\ntwo\n"), 0o640))
	for range 2 {
		command{dir: at, env: []string{"HOME=" + dir(t)}, stdin: strings.NewReader("")}.must(t,
			"vim", "-Nu", "NONE", "-es", "-c", "set backup writebackup swapfile", "-c", "%s/o/0/ge", "-c", "wq", file)
	}
	require.Equal(t, "0ne\ntw0\n", must(t, at, "cat", "text"))
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.EqualValues(t, 0o640, info.Mode().Perm())
	require.NoFileExists(t, filepath.Join(at, ".text.swp"))
}

func testGoBuild(t *testing.T, at string) {
	for name, text := range map[string]string{
		"go.mod":      "module example.org/x\n\ngo 1.26\n",
		"main.go":     "package main\n\nimport (\n\t\"fmt\"\n\n\t\"example.org/x/y\"\n)\n\nfunc main() { fmt.Println(y.Y()) }\n",
		"y/y.go":      "package y\n\nfunc Y() int { return 42 }\n",
		"y/y_test.go": "package y\n\nimport \"testing\"\n\nfunc TestY(t *testing.T) {\n\tif Y() != 42 {\n\t\tt.Fail()\n\t}\n}\n",
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(at, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(at, name), []byte(text), 0o644))
	}
	// The build cache and the temporary files, with their locks and executables, on the mount too.
	c := command{dir: at, env: []string{"GOCACHE=" + at + "/.cache", "GOTMPDIR=" + at, "GOFLAGS=", "GOWORK=off"}}
	c.must(t, "go", "build", "-o", "x", ".")
	require.Equal(t, "42\n", must(t, at, "./x"))
	c.must(t, "go", "test", "./...")
}
