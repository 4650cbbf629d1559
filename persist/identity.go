package persist

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/gearsfs/gearsfs"
)

// ID is 16 random bytes.
type ID [16]byte

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Identity is who a node is. It is made with the data directory; a node never
// comes back under it with other data.
type Identity struct {
	Name   string
	Node   ID
	Volume ID // of the volume that is kept here; zero where none is yet
	// Member is the node's id in the volume's group. 0 where it has none yet,
	// and in old data, whose node is member 1.
	Member gearsfs.MemberID
}

// FORMAT and identity are text: a title, "name value" lines, and last a line
// with the crc32c of all before it.
const (
	formatTitle   = "gearsfs data"
	identityTitle = "gearsfs identity"
	checkName     = "crc32c"
	textBytesMax  = 4096
	nameBytesMax  = 255
)

type textLine struct{ name, value string }

func formatText(title string, lines ...textLine) []byte {
	var b strings.Builder
	b.WriteString(title + "\n")
	for _, line := range lines {
		b.WriteString(line.name + " " + line.value + "\n")
	}
	sum := crc32.Checksum([]byte(b.String()), castagnoli)
	fmt.Fprintf(&b, "%s %08x\n", checkName, sum)
	return []byte(b.String())
}

// parseText takes such a file apart. ok is false where it does not begin with
// the title; err is gearsfs.ErrDamaged where the rest is not what was written.
func parseText(title string, b []byte) (lines []textLine, ok bool, err error) {
	text := string(b)
	if !strings.HasPrefix(text, title+"\n") {
		return nil, false, nil
	}
	body := strings.LastIndex(strings.TrimSuffix(text, "\n"), "\n") + 1
	sum := crc32.Checksum(b[:body], castagnoli)
	if text[body:] != fmt.Sprintf("%s %08x\n", checkName, sum) {
		return nil, true, gearsfs.ErrDamaged.Because("the checksum is wrong")
	}
	for line := range strings.Lines(text[len(title)+1 : body]) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		lines = append(lines, textLine{name, value})
	}
	return lines, true, nil
}

func (id Identity) format() []byte {
	lines := []textLine{{"name", strconv.Quote(id.Name)}, {"node", id.Node.String()}, {"volume", id.Volume.String()}}
	if id.Member != 0 {
		lines = append(lines, textLine{"member", strconv.FormatUint(uint64(id.Member), 16)})
	}
	return formatText(identityTitle, lines...)
}

func parseIdentity(b []byte) (Identity, error) {
	lines, ok, err := parseText(identityTitle, b)
	if err != nil {
		return Identity{}, err
	}
	var id Identity
	var names []string
	for _, line := range lines {
		names = append(names, line.name)
	}
	all := []string{"name", "node", "volume", "member"}
	if !ok || len(names) < 3 || len(names) > 4 || !slices.Equal(names, all[:len(names)]) {
		return Identity{}, gearsfs.ErrDamaged.Because("not an identity")
	}
	id.Name, err = strconv.Unquote(lines[0].value)
	if err = errors.Join(err, parseID(lines[1].value, &id.Node), parseID(lines[2].value, &id.Volume)); err != nil {
		return Identity{}, gearsfs.ErrDamaged.Because("not an identity: %v", err)
	}
	if len(lines) == 4 {
		member, err := strconv.ParseUint(lines[3].value, 16, 64)
		if err != nil || member == 0 {
			return Identity{}, gearsfs.ErrDamaged.Because("not an identity: member %q", lines[3].value)
		}
		id.Member = gearsfs.MemberID(member)
	}
	return id, nil
}

func parseID(s string, id *ID) error {
	b, err := hex.DecodeString(s)
	if err == nil && len(b) != len(id) {
		err = hex.ErrLength
	}
	copy(id[:], b)
	return err
}

func checkNodeName(name string) error {
	if len(name) > nameBytesMax || strings.ContainsFunc(name, unicode.IsControl) {
		return gearsfs.ErrInvalid.Because("%q is not a node's name", name)
	}
	return nil
}

// readText reads a small file.
func readText(fsys FS, path string) ([]byte, error) {
	f, err := fsys.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, textBytesMax+1))
	return b, errors.Join(err, f.Close())
}

// writeFile replaces a file atomically: after a crash it is the old or the new
// one, and the new one when writeFile has returned.
func writeFile(fsys FS, dir, name string, content []byte) error {
	if err := writeTemp(fsys, dir, name, content); err != nil {
		return err
	}
	return renameTemp(fsys, dir, name)
}

// writeTemp writes what is to replace a file. Nothing has changed yet.
func writeTemp(fsys FS, dir, name string, content []byte) error {
	f, err := fsys.Create(fsys.PathJoin(dir, name)+tempSuffix, vfs.WriteCategoryUnspecified)
	if err != nil {
		return noSpace(err)
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return noSpace(errors.Join(err, f.Close()))
}

// renameTemp replaces the file by what writeTemp wrote. After an error it is
// the old or the new one.
func renameTemp(fsys FS, dir, name string) error {
	path := fsys.PathJoin(dir, name)
	if err := fsys.Rename(path+tempSuffix, path); err != nil {
		return err
	}
	return syncDir(fsys, dir)
}

const tempSuffix = ".tmp"

func syncDir(fsys FS, dir string) error {
	d, err := fsys.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
