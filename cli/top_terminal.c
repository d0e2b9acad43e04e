/* What the terminal can do, asked before curses takes it: newterm keeps memory of one that it does not know.
 * In a file of its own because term.h makes macros of common words ("columns", "lines"). */
#include "cli/top.h"

#include <curses.h>
#include <unistd.h>

#include <term.h>

int top_terminal_look(void)
{
    int is_known;
    if (setupterm(NULL, STDOUT_FILENO, &is_known) != OK) return -1;
    int places_cursor = tigetstr("cup") != NULL;
    del_curterm(cur_term);
    return !places_cursor;
}
