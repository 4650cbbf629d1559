package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// dirPage is how many entries of a directory are asked for at once.
const dirPage = 1000

// opener is app.open, or app.openName where a symbolic link itself is meant.
type opener func(ctx context.Context, arg, nodeFlag string) (target, error)

// treeCommand makes a command that does one thing to each of its FILEs.
func (a *app) treeCommand(use, short, long, example string, open opener, each func(ctx context.Context, t target) error) *cobra.Command {
	var at string
	c := &cobra.Command{
		Use: use, Short: short, Long: long, Example: example,
		Args: atLeast(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.forEach(c.Context(), open, args, at, each)
		},
	}
	nodeFlag(c.Flags(), &at)
	return c
}

// forEach does f to each of the FILEs; one that fails does not keep the others
// from being done.
func (a *app) forEach(ctx context.Context, open opener, args []string, at string, f func(ctx context.Context, t target) error) error {
	var errs []error
	for _, arg := range args {
		t, err := open(ctx, arg, at)
		if err == nil {
			if err = cause(ctx, f(ctx, t)); err != nil {
				err = fmt.Errorf("%s: %w", arg, err)
			}
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

func (a *app) lsCommand() *cobra.Command {
	var at string
	var o listOptions
	c := &cobra.Command{
		Use:   "ls [FILE]...",
		Short: "List directories of a volume",
		Long: `List the names in directories, in the order of their bytes; without FILE those of the
current directory, or outside a mount of the volume's root. -o json shows what stat does.`,
		Example: "  gearsfs ls :/\n  gearsfs ls -l --node unix:/run/gearsfs.sock /src\n  gearsfs ls -o json gears | jq -r 'select(.size > 1000) | .path'",
		Args:    atLeast(0),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{":/"}
				if _, err := a.locate("."); err == nil && at == "" {
					args[0] = "."
				}
			}
			return a.forEach(c.Context(), a.open, args, at, func(ctx context.Context, t target) error { return a.list(ctx, t, o) })
		},
	}
	nodeFlag(c.Flags(), &at)
	c.Flags().BoolVarP(&o.long, "long", "l", false, "with mode, links, owner, group, size and time")
	c.Flags().VarP(&o.format, "output", "o", "write one JSON object per line")
	return c
}

// listOptions says how ls shows what it finds.
type listOptions struct {
	long   bool
	format formatFlag
}

func (a *app) list(ctx context.Context, t target, o listOptions) error {
	attr, err := t.Resolve(ctx, t.path, true)
	if err != nil {
		return err
	}
	if attr.Mode&unix.S_IFMT != unix.S_IFDIR {
		return a.printEntry(ctx, t, t.path, gearsfs.Entry{Name: t.arg, Attr: attr}, o)
	}
	for after := ""; ; {
		page, err := t.ReadDir(ctx, attr.Ino, after, dirPage)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			return nil
		}
		for _, e := range page {
			if err := a.printEntry(ctx, t, path.Join(t.path, e.Name), e, o); err != nil {
				return err
			}
		}
		after = page[len(page)-1].Name
	}
}

// printEntry shows what is at a path in the volume.
func (a *app) printEntry(ctx context.Context, t target, at string, e gearsfs.Entry, o listOptions) error {
	switch {
	case o.format.json:
		return a.printJSON(attrToJSON(at, e.Attr))
	case !o.long:
		return a.printf("%s\n", a.shown(e.Name))
	}
	arrow := ""
	if e.Attr.Mode&unix.S_IFMT == unix.S_IFLNK {
		link, err := t.Readlink(ctx, e.Attr.Ino)
		if err != nil {
			return err
		}
		arrow = " -> " + a.shown(link)
	}
	return a.printf("%s %3d %5d %5d %12d %s %s%s\n", modeText(e.Attr.Mode), e.Attr.Nlink, e.Attr.UID, e.Attr.GID,
		e.Attr.Size, e.Attr.Mtime.Local().Format(time.DateTime), a.shown(e.Name), arrow)
}

// modeText shows the mode of stat(2) as ls -l does.
func modeText(mode uint32) string {
	text := []byte("?rwxrwxrwx")
	for bit := range 9 {
		if mode>>bit&1 == 0 {
			text[9-bit] = '-'
		}
	}
	for _, special := range []struct {
		bit    uint32
		at     int
		letter byte
	}{{unix.S_ISUID, 3, 's'}, {unix.S_ISGID, 6, 's'}, {unix.S_ISVTX, 9, 't'}} {
		switch {
		case mode&special.bit == 0:
		case text[special.at] == 'x':
			text[special.at] = special.letter
		default:
			text[special.at] = special.letter - 'a' + 'A'
		}
	}
	kinds := map[uint32]byte{
		unix.S_IFREG: '-', unix.S_IFDIR: 'd', unix.S_IFLNK: 'l', unix.S_IFIFO: 'p',
		unix.S_IFSOCK: 's', unix.S_IFBLK: 'b', unix.S_IFCHR: 'c',
	}
	if kind, ok := kinds[mode&unix.S_IFMT]; ok {
		text[0] = kind
	}
	return string(text)
}

func (a *app) catCommand() *cobra.Command {
	return a.treeCommand("cat FILE...", "Write the bytes of files to standard output",
		"Write the bytes of files to standard output: the records of the stream data, which stay there.",
		"  gearsfs cat :/src/Makefile\n  gearsfs cat b:/results > results", a.open, a.cat)
}

func (a *app) cat(ctx context.Context, t target) (err error) {
	f, err := openVolumeFile(ctx, t)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	for {
		data, err := f.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := a.out.Write(data); err != nil {
			return outputError(err)
		}
	}
}

func (a *app) mvCommand() *cobra.Command {
	var at string
	c := &cobra.Command{
		Use:   "mv FILE... TO",
		Short: "Rename files, or move them into a directory",
		Long: `Rename FILE to TO, replacing a file there; where TO is a directory, move the FILEs into it.
All must be in one volume.`,
		Example: "  gearsfs mv :/jobs :/done\n  gearsfs mv :/a :/b :/archive",
		Args:    atLeast(2),
		RunE:    func(c *cobra.Command, args []string) error { return a.move(c.Context(), args, at) },
	}
	nodeFlag(c.Flags(), &at)
	return c
}

func (a *app) move(ctx context.Context, args []string, at string) error {
	from, arg := args[:len(args)-1], args[len(args)-1]
	to, err := a.open(ctx, arg, at)
	if err != nil {
		return err
	}
	attr, err := to.Resolve(ctx, to.path, true)
	intoDir := err == nil && attr.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case err != nil && !errors.Is(err, gearsfs.ErrNotFound):
		return fmt.Errorf("%s: %w", arg, cause(ctx, err))
	case len(from) > 1 && !intoDir:
		return fmt.Errorf("%s: %w", arg, gearsfs.ErrNotDir)
	}
	newDir, newName := attr.Ino, ""
	if !intoDir {
		name, err := a.openName(ctx, arg, at) // a link there is replaced, not followed
		if err != nil {
			return err
		}
		if newDir, newName, err = parent(ctx, name); err != nil {
			return fmt.Errorf("%s: %w", arg, cause(ctx, err))
		}
	}
	return a.forEach(ctx, a.openName, from, at, func(ctx context.Context, t target) error {
		if t.Manager != to.Manager {
			return gearsfs.ErrInvalid.Because("%s is in the volume of another node: copy it instead", arg)
		}
		dir, name, err := parent(ctx, t)
		if err != nil {
			return err
		}
		if !intoDir && strings.HasSuffix(arg, "/") {
			if attr, err := t.Lookup(ctx, dir, name); err != nil || attr.Mode&unix.S_IFMT != unix.S_IFDIR {
				return cmp.Or[error](err, gearsfs.ErrNotDir.Because("there is no directory %s", arg))
			}
		}
		return t.Rename(ctx, dgm.Rename{Dir: dir, Name: name, NewDir: newDir, NewName: cmp.Or(newName, name)})
	})
}

// parent returns the directory that t's path is in, and its name there.
func parent(ctx context.Context, t target) (gearsfs.Ino, string, error) {
	dir, name, err := split(t.path)
	if err != nil {
		return 0, "", err
	}
	attr, err := t.Resolve(ctx, dir, true)
	return attr.Ino, name, err
}

func (a *app) rmCommand() *cobra.Command {
	var recursive bool
	c := a.treeCommand("rm FILE...", "Remove files with all their streams", "Remove files with all their streams, and with -r directories with all that is in them.",
		"  gearsfs rm :/jobs\n  gearsfs rm -r :/src", a.openName,
		func(ctx context.Context, t target) error {
			dir, name, err := parent(ctx, t)
			if err != nil {
				return err
			}
			attr, err := t.Lookup(ctx, dir, name)
			if err != nil {
				return err
			}
			return remove(ctx, t, dir, gearsfs.Entry{Name: name, Attr: attr}, recursive)
		})
	c.Flags().BoolVarP(&recursive, "recursive", "r", false, "also directories, with all that is in them")
	return c
}

func remove(ctx context.Context, t target, dir gearsfs.Ino, e gearsfs.Entry, recursive bool) error {
	if e.Attr.Mode&unix.S_IFMT != unix.S_IFDIR {
		return t.Unlink(ctx, dir, e.Name)
	}
	if !recursive {
		return gearsfs.ErrIsDir.Because("is a directory: -r removes it with all that is in it")
	}
	for {
		page, err := t.ReadDir(ctx, e.Attr.Ino, "", dirPage)
		if err != nil {
			return err
		}
		for _, child := range page {
			err := remove(ctx, t, e.Attr.Ino, child, true)
			if err != nil && !errors.Is(err, gearsfs.ErrNotFound) {
				return fmt.Errorf("%s: %w", child.Name, err)
			}
		}
		if len(page) == 0 {
			return t.Rmdir(ctx, dir, e.Name)
		}
	}
}

func (a *app) mkdirCommand() *cobra.Command {
	var parents bool
	c := a.treeCommand("mkdir FILE...", "Make directories", "Make directories, and with -p those above them; -p does not mind what is there already.",
		"  gearsfs mkdir -p :/queues/images", a.openName,
		func(ctx context.Context, t target) error { return a.mkdir(ctx, t, parents) })
	c.Flags().BoolVarP(&parents, "parents", "p", false, "make the directories above as well")
	return c
}

func (a *app) mkdir(ctx context.Context, t target, parents bool) error {
	make := dgm.Make{Mode: unix.S_IFDIR | 0o777&^a.umask}
	if !parents {
		dir, name, err := parent(ctx, t)
		if err != nil {
			return err
		}
		_, err = t.Make(ctx, dir, name, make)
		return err
	}
	path := "/"
	at, err := t.Resolve(ctx, path, true)
	if err != nil {
		return err
	}
	for _, name := range strings.FieldsFunc(t.path, func(r rune) bool { return r == '/' }) {
		path += name
		next, err := t.Resolve(ctx, path, true)
		if errors.Is(err, gearsfs.ErrNotFound) {
			next, err = t.Make(ctx, at.Ino, name, make)
			if errors.Is(err, gearsfs.ErrExists) { // made by somebody else meanwhile
				next, err = t.Resolve(ctx, path, true)
			}
		}
		if err != nil {
			return err
		}
		if next.Mode&unix.S_IFMT != unix.S_IFDIR {
			return gearsfs.ErrNotDir.Because("%s is not a directory", path)
		}
		at, path = next, path+"/"
	}
	return nil
}

// attrJSON is what stat shows, and ls of each name.
type attrJSON struct {
	pathJSON
	Ino     gearsfs.Ino `json:"ino"`
	Mode    string      `json:"mode"`
	Links   uint32      `json:"links"`
	UID     uint32      `json:"uid"`
	GID     uint32      `json:"gid"`
	Size    uint64      `json:"size"`
	Head    gearsfs.Pos `json:"head"`
	Version uint64      `json:"version"`
	Atime   string      `json:"atime"`
	Mtime   string      `json:"mtime"`
	Ctime   string      `json:"ctime"`
}

func attrToJSON(name string, at gearsfs.Attr) attrJSON {
	return attrJSON{
		pathJSON: pathToJSON(name), Ino: at.Ino, Mode: modeText(at.Mode), Links: at.Nlink, UID: at.UID, GID: at.GID,
		Size: at.Size, Head: at.Head, Version: at.Version,
		Atime: timeText(at.Atime), Mtime: timeText(at.Mtime), Ctime: timeText(at.Ctime),
	}
}

func (a *app) statCommand() *cobra.Command {
	var format formatFlag
	c := a.treeCommand("stat FILE...", "Show the attributes of files",
		`Show the attributes of files, one "name value" per line. A symbolic link is not followed.
head is how many bytes were taken from the front of the file.`,
		"  gearsfs stat :/jobs\n  gearsfs stat -o json gears/jobs", a.openName,
		func(ctx context.Context, t target) error {
			at, err := t.Resolve(ctx, t.path, false)
			if err != nil {
				return err
			}
			j := attrToJSON(t.path, at)
			if format.json {
				return a.printJSON(j)
			}
			return a.pairs([]pair{
				{"path", a.shown(t.path)}, {"ino", j.Ino}, {"mode", j.Mode}, {"links", j.Links}, {"uid", j.UID}, {"gid", j.GID},
				{"size", j.Size}, {"head", j.Head}, {"version", j.Version},
				{"atime", j.Atime}, {"mtime", j.Mtime}, {"ctime", j.Ctime},
			})
		})
	c.Flags().VarP(&format, "output", "o", "write one JSON object per line")
	return c
}
