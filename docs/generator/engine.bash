# The words of the line, joined where bash broke them at "=" or ":".
_@P@_words() {
  local i word
  words=()
  for ((i = 0; i <= COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    if ((i > 1)) && [[ $word == [=:] || ${COMP_WORDS[i - 1]} == [=:] ]]; then
      words[${#words[@]} - 1]+=$word
    else
      words+=("$word")
    fi
  done
}

# Offers the given words that begin with $value; what bash has broken off in front is left out.
_@P@_offer() {
  local word broken=
  [[ $value =~ ^(.*[=:])[^=:]*$ ]] && broken=${BASH_REMATCH[1]}
  for word in "$@"; do
    [[ $word == "$value"* ]] && COMPREPLY+=("${word#"$broken"}")
  done
  [[ ${#COMPREPLY[@]} -gt 0 && ${COMPREPLY[0]} == *[=:,] ]] && compopt -o nospace 2>/dev/null
}

# Offers files that begin with $1, with $2 in front.
_@P@_files() {
  local file
  local -a found=()
  while IFS= read -r file; do
    found+=("$2$file")
  done < <(compgen "${3:--f}" -- "$1")
  compopt -o filenames 2>/dev/null
  _@P@_offer "${found[@]}"
}

# KEY=VALUE,...: $1 is the option.
_@P@_keyed() {
  local head= last=$value tag= part key
  local -a parts=() found=()
  [[ $value == *,* ]] && head=${value%,*}, last=${value##*,}
  IFS=, read -ra parts <<<"$value"
  for part in "${parts[@]}"; do
    case $part in
      driver=* | type=* | qom-type=* | backend=*) tag=${part#*=}; break ;;
      *=*) ;;
      *) tag=$part; break ;;
    esac
  done
  if [[ $last == *=* ]]; then
    key=${last%%=*}
    case $key in
      driver | type | qom-type | backend) found=($(_@P@_tags "$1")) ;;
      filename | *.filename | path | *.path | file | dir | mountpoint | logfile)
        _@P@_files "${last#*=}" "$head$key="
        return
        ;;
      *) found=($(_@P@_choices "$key")) ;;
    esac
    _@P@_offer "${found[@]/#/$head$key=}"
    return
  fi
  [[ -n $head ]] || found=($(_@P@_tags "$1"))
  for key in $(_@P@_keys "$1" "$tag"); do
    found+=("$head$key=")
  done
  _@P@_offer "${found[@]}"
}

# Options of the format that the line names.
_@P@_format_options() {
  local i format= key
  for ((i = 1; i < ${#words[@]} - 1; i++)); do
    case ${words[i]} in
      -O | --target-format | --output-format) format=${words[i + 1]} ;;
      -f | --format) [[ -n $format ]] || format=${words[i + 1]} ;;
      --target-format=* | --output-format=*) format=${words[i]#*=} ;;
      --format=*) [[ -n $format ]] || format=${words[i]#*=} ;;
    esac
  done
  local head= last=$value
  local -a found=()
  [[ $value == *,* ]] && head=${value%,*}, last=${value##*,}
  if [[ $last == *=* ]]; then
    key=${last%%=*}
    found=($(_@P@_choices "$key"))
    [[ $key == backing_file || $key == data_file ]] && { _@P@_files "${last#*=}" "$head$key="; return; }
    _@P@_offer "${found[@]/#/$head$key=}"
    return
  fi
  for key in $(_@P@_keys format "$format"); do
    found+=("$head$key=")
  done
  _@P@_offer "${found[@]}" "${head}help"
}

_@P@() {
  local cur prev value command= option= kind= choices= i
  local -a words=()
  COMPREPLY=()
  _@P@_words
  cur=${words[${#words[@]} - 1]}
  prev=${words[${#words[@]} - 2]}
  if ((@COMMANDS@)); then
    for ((i = 1; i < ${#words[@]} - 1; i++)); do
      case ${words[i]} in
        -*) [[ ${words[i]} != *=* ]] && _@P@_value '' "${words[i]}" && ((i++)) ;;
        *) command=${words[i]}; break ;;
      esac
    done
  fi
  value=$cur
  if [[ $cur == --*=* ]] && _@P@_value "$command" "${cur%%=*}"; then
    option=${cur%%=*} value=${cur#*=}
  elif [[ $prev == -* ]] && _@P@_value "$command" "$prev"; then
    option=$prev
  fi
  if [[ -n $option ]]; then
    case $kind in
      words)
        if [[ $value == unix:* ]]; then _@P@_files "${value#unix:}" unix:; else _@P@_offer $choices; fi
        ;;
      file) _@P@_files "$value" '' ;;
      directory) _@P@_files "$value" '' -d ;;
      format) _@P@_offer $(_@P@_tags format) ;;
      format-options) _@P@_format_options ;;
      keyed:*) _@P@_keyed "${kind#keyed:}" ;;
    esac
  elif [[ $cur == -* ]]; then
    _@P@_offer $(_@P@_options "$command")
  elif ((@COMMANDS@)) && [[ -z $command ]]; then
    _@P@_offer $(_@P@_commands)
  elif ((@OPERANDS@)); then
    _@P@_files "$value" ''
  fi
} && complete -F _@P@ @NAME@
