package scrub

import (
	"encoding/base64"
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// form is a value in one encoding: a row of letters, each of which has several
// spellings.
type form struct {
	value   int      // in Set.names
	letters []uint32 // in Set.letters
	longest int      // bytes in the longest spelling of any of the letters
	bits    int      // of the value that each letter tells
	lead    int      // bits of the value that are told before the first letter
	free    int      // bits of the value's beginning that Release may let out
}

// letter is the trie of one letter's spellings.
type letter struct {
	nodes   [][]edge // the first is the root
	longest int      // bytes in the longest spelling
}

// edge leads to a node, or completes a spelling.
type edge struct {
	on   byte
	skip uint8  // letters of the form that are complete; 0: the spelling goes on
	to   uint16 // where it goes on
}

// spell adds a spelling of skip letters. With fold, the capitals in it stand
// for either case: hex digits are written as capitals, all else is not.
func (l *letter) spell(spelling string, skip int, fold bool) {
	if l.nodes == nil {
		l.nodes = make([][]edge, 1)
	}
	l.longest = max(l.longest, len(spelling))
	node := uint16(0)
	last := len(spelling) - 1
	for i := range last {
		to := l.child(node, spelling[i])
		if to == 0 {
			to = uint16(len(l.nodes))
			l.nodes = append(l.nodes, nil)
			l.link(node, edge{on: spelling[i], to: to}, fold)
		}
		node = to
	}
	l.link(node, edge{on: spelling[last], skip: uint8(skip)}, fold)
}

func (l *letter) child(node uint16, on byte) uint16 {
	for _, e := range l.nodes[node] {
		if e.on == on && e.to != 0 {
			return e.to
		}
	}
	return 0
}

func (l *letter) link(node uint16, e edge, fold bool) {
	l.nodes[node] = append(l.nodes[node], e)
	if fold && 'A' <= e.on && e.on <= 'Z' {
		e.on += 'a' - 'A'
		l.nodes[node] = append(l.nodes[node], e)
	}
}

// maxZeros are those before the digits of a character reference, of which HTML
// allows any number.
const maxZeros = 8

// spellNumber adds a numeric character reference of HTML, with zeros before its
// digits and with or without a semicolon behind them. The digits are capitals
// that stand for either case.
func (l *letter) spellNumber(prefix, digits string, skip int) {
	l.longest = max(l.longest, len(prefix)+maxZeros+len(digits)+1)
	semicolon := l.add()
	l.link(semicolon, edge{on: ';', skip: uint8(skip)}, false)
	// From the last digit to the first: node is where the digits behind go on.
	last := len(digits) - 1
	lead := []edge{{on: digits[last], skip: uint8(skip)}, {on: digits[last], to: semicolon}}
	for i := last - 1; i >= 0; i-- {
		node := l.add()
		for _, e := range lead {
			l.link(node, e, true)
		}
		lead = []edge{{on: digits[i], to: node}}
	}
	node := l.walk(prefix)
	for i := range maxZeros + 1 {
		for _, e := range lead {
			l.link(node, e, true)
		}
		if i < maxZeros {
			next := l.add()
			l.link(node, edge{on: '0', to: next}, false)
			node = next
		}
	}
}

// add makes a node.
func (l *letter) add() uint16 {
	if l.nodes == nil {
		l.nodes = make([][]edge, 1)
	}
	l.nodes = append(l.nodes, nil)
	return uint16(len(l.nodes) - 1)
}

// walk is the node behind a beginning, which it makes where it is not there.
func (l *letter) walk(beginning string) (node uint16) {
	for i := range len(beginning) {
		to := l.child(node, beginning[i])
		if to == 0 {
			to = l.add()
			l.link(node, edge{on: beginning[i], to: to}, false)
		}
		node = to
	}
	return node
}

// letter finds or makes the letter of that key.
func (s *Set) letter(key string, make func(*letter)) uint32 {
	n, ok := s.keys[key]
	if !ok {
		n = uint32(len(s.letters))
		s.keys[key] = n
		var l letter
		make(&l)
		s.letters = append(s.letters, l)
	}
	return n
}

// add appends all forms of a value.
func (s *Set) add(name, value string) {
	s.names = append(s.names, name)
	free := min(7, len(value)/2)
	s.addForm(s.text(value), 8, 0, free)
	s.addForm(s.hex(value), 4, 0, free)
	for before := range 3 {
		letters, lead := s.base64(value, before)
		s.addForm(letters, 6, lead, free)
	}
	if strings.IndexFunc(value, func(r rune) bool { return r >= utf8.RuneSelf }) < 0 {
		s.addForm(s.utf16(value), 8, 0, free)
	}
}

// addForm appends a form; free are the bytes of its beginning that Release may
// let out.
func (s *Set) addForm(letters []uint32, bits, lead, free int) {
	longest := 0
	for _, n := range letters {
		longest = max(longest, s.letters[n].longest)
	}
	s.forms = append(s.forms, form{value: len(s.names) - 1, letters: letters, longest: longest,
		bits: bits, lead: lead, free: 8 * free})
}

// text has one letter a byte. The first letter of a character of several bytes
// has the spellings of the whole character too.
func (s *Set) text(value string) []uint32 {
	var letters []uint32
	for len(value) > 0 {
		if strings.HasPrefix(value, ligature) {
			letters = append(letters, s.letter("text "+ligature, func(l *letter) {
				l.spellByte(value[0])
				l.spell(ligatureName, len(ligature), false)
			}))
			value = value[1:]
			continue
		}
		c, size := utf8.DecodeRuneInString(value)
		letters = append(letters, s.letter("text "+value[:size], func(l *letter) {
			l.spellByte(value[0])
			if size > 1 {
				l.spellRune(c, size)
			}
		}))
		for i := 1; i < size; i++ {
			letters = append(letters, s.letter("text "+value[i:i+1], func(l *letter) { l.spellByte(value[i]) }))
		}
		value = value[size:]
	}
	return letters
}

// short are the bytes that have escapes of two characters in JSON, or, in a
// query, another character.
var short = map[byte]string{
	'"': `\"`, '\\': `\\`, '/': `\/`, '\b': `\b`, '\f': `\f`, '\n': `\n`, '\r': `\r`, '\t': `\t`, ' ': "+",
}

// named are HTML's names of characters in ASCII, with the end that is part of
// them: a few older ones have no semicolon.
var named = map[byte][]string{
	'\t': {"Tab;"}, '\n': {"NewLine;"}, '!': {"excl;"}, '"': {"quot;", "quot", "QUOT;", "QUOT"}, '#': {"num;"}, '$': {"dollar;"},
	'%': {"percnt;"}, '&': {"amp;", "amp", "AMP;", "AMP"}, '\'': {"apos;"}, '(': {"lpar;"}, ')': {"rpar;"}, '*': {"ast;", "midast;"},
	'+': {"plus;"}, ',': {"comma;"}, '.': {"period;"}, '/': {"sol;"}, ':': {"colon;"}, ';': {"semi;"}, '<': {"lt;", "lt", "LT;", "LT"},
	'=': {"equals;"}, '>': {"gt;", "gt", "GT;", "GT"}, '?': {"quest;"}, '@': {"commat;"}, '[': {"lsqb;", "lbrack;"}, '\\': {"bsol;"},
	']': {"rsqb;", "rbrack;"}, '^': {"Hat;"}, '_': {"lowbar;", "UnderBar;"}, '`': {"grave;", "DiacriticalGrave;"}, '{': {"lcub;", "lbrace;"},
	'|': {"verbar;", "vert;", "VerticalLine;"}, '}': {"rcub;", "rbrace;"},
}

// ligature is the one name of two characters in ASCII.
const ligature, ligatureName = "fj", "&fjlig;"

func (l *letter) spellByte(b byte) {
	l.spell(string([]byte{b}), 1, false)
	l.spell(fmt.Sprintf("%%%02X", b), 1, true)
	l.spell(fmt.Sprintf(`\u%04X`, b), 1, true)
	if s := short[b]; s != "" {
		l.spell(s, 1, false)
	}
	for _, name := range named[b] {
		l.spell("&"+name, 1, false)
	}
	if 0 < b && b < utf8.RuneSelf {
		l.spellReference(rune(b), 1)
	}
}

func (l *letter) spellRune(c rune, size int) {
	if high, low := utf16.EncodeRune(c); high != utf8.RuneError {
		l.spell(fmt.Sprintf(`\u%04X\u%04X`, high, low), size, true)
	} else {
		l.spell(fmt.Sprintf(`\u%04X`, c), size, true)
	}
	l.spellReference(c, size)
}

func (l *letter) spellReference(c rune, size int) {
	l.spellNumber("&#", fmt.Sprintf("%d", c), size)
	l.spellNumber("&#x", fmt.Sprintf("%X", c), size)
	l.spellNumber("&#X", fmt.Sprintf("%X", c), size)
}

// hex has two letters a byte.
func (s *Set) hex(value string) []uint32 {
	var letters []uint32
	for _, digit := range fmt.Sprintf("%X", value) {
		letters = append(letters, s.letter("hex "+string(digit), func(l *letter) { l.spell(string(digit), 1, true) }))
	}
	return letters
}

// base64 has a letter for each character that is made of the value alone when
// so many bytes stand before it; lead are the bits before the first of them.
func (s *Set) base64(value string, before int) (letters []uint32, lead int) {
	from, to := (8*before+5)/6, 8*(before+len(value))/6
	whole := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("\x00", before) + value))
	for i := from; i < to; i++ {
		key, breaks := "base64 ", lineBreaks
		if i == from {
			key, breaks = "first of base64 ", lineBreaks[:1]
		}
		char := whole[i : i+1]
		letters = append(letters, s.letter(key+char, func(l *letter) {
			for _, lineBreak := range breaks {
				l.spell(lineBreak+char, 1, false)
				for _, other := range base64Spellings[char] {
					l.spell(lineBreak+other, 1, true)
				}
			}
		}))
	}
	return letters, 6*from - 8*before
}

var lineBreaks = []string{"", "\n", "\r\n", `\n`, `\r\n`}

var base64Spellings = map[string][]string{
	"+": {"-", "%2B", `\u002B`},
	"/": {"_", "%2F", `\u002F`, `\/`},
}

// utf16 is between the first and the last byte the same in both byte orders.
func (s *Set) utf16(value string) []uint32 {
	var letters []uint32
	for i := range len(value) {
		key, zero := "utf16 ", "\x00"
		if i == 0 {
			key, zero = "first of utf16 ", ""
		}
		char := value[i : i+1]
		letters = append(letters, s.letter(key+char, func(l *letter) { l.spell(zero+char, 1, false) }))
	}
	return letters
}
